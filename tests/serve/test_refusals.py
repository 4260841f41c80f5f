"""Refusals that a client can use: it reads them whole, and they say what would be granted."""

from __future__ import annotations

import socket
from typing import Any

import pytest

pytest.importorskip("starlette")

from pliant.serve.safety import Keys

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"


@pytest.mark.parametrize("size", [3_000_000, 5_000_000], ids=["wrong key", "too large"])
def test_who_is_refused_can_read_why(serve: Any, size: int) -> None:
    """A connection closed with bytes unread is reset, and the answer on its way is lost."""
    own = serve(Keys(["secret-of-ann"]))
    address = own.url.removeprefix("http://").split(":")
    key = b"wrong" if size < 4_000_000 else b"secret-of-ann"
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n" % key
    with socket.create_connection((address[0], int(address[1])), timeout=20) as raw:
        raw.sendall(head + b"Content-Length: %d\r\n\r\n" % size + b"a" * size)
        answer = b"".join(iter(lambda: raw.recv(65_536), b""))
    assert answer.split(b" ")[1] == (b"401" if size < 4_000_000 else b"413")
    assert answer.endswith(b"}}") and b"connection: close" in answer.lower()
    assert own.http.get("/health").status_code == 200


def test_a_budget_below_the_context(serve: Any) -> None:
    """The budget is no multiple of a page of 16 tokens: what is granted is whole pages of it."""
    own = serve(cache_bytes=100 * (4 * 2 * 2 * 12 * 2 + 12))
    unlimited = own.post(CHAT, messages=[{"role": "user", "content": "a"}], ignore_eos=True)
    assert unlimited.status_code == 200, unlimited.text
    usage = unlimited.json()["usage"]
    assert usage["total_tokens"] == 96 + 1
    for tokens in (97, 105, 120):
        refused = own.post(TEXT, prompt="a", max_tokens=tokens, ignore_eos=True)
        assert refused.status_code == 400, tokens
        error = refused.json()["error"]
        assert error["code"] == "context_length_exceeded", tokens
        assert "is 96 tokens on this server (--cache-memory)" in error["message"]
    assert own.post(TEXT, prompt="a", max_tokens=96, ignore_eos=True).status_code == 200
