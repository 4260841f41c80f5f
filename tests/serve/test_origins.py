"""Pages of others cannot use a server without keys; those that are allowed can."""

from __future__ import annotations

from typing import Any

import pytest

from pliant.errors import UsageError
from pliant.serve.api.errors import ApiError
from pliant.serve.origins import Origins
from pliant.serve.safety import Keys

TEXT = "/v1/completions"
BODY = {"prompt": "a", "max_tokens": 1}


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("", ""),
        ("localhost:8321", ""),
        ("127.0.0.1:8321", "http://127.0.0.1:8321"),
        ("[::1]:8321", "http://[::1]:8321"),
        ("box", "https://box"),
        ("Box.local:1", "http://box.local:1"),
        ("me.localhost", "https://chat.example.org"),
        ("chat.example.org", ""),
        ("192.168.1.7", ""),
    ],
)
def test_who_may(host: str, origin: str) -> None:
    Origins(["https://chat.example.org/"]).check(host, origin)


@pytest.mark.parametrize(
    ("host", "origin", "code"),
    [
        ("evil.example.org:8321", "http://evil.example.org:8321", "unknown_host"),
        ("localhost.example.org", "", "unknown_host"),
        ("127.0.0.1.example.org", "", "unknown_host"),
        ("localhost:8321", "https://evil.example.org", "origin_not_allowed"),
        ("localhost:8321", "http://localhost:3000", "origin_not_allowed"),
        ("localhost:8321", "null", "origin_not_allowed"),
    ],
)
def test_who_may_not(host: str, origin: str, code: str) -> None:
    with pytest.raises(ApiError, match=r"--allow-origin") as refusal:
        Origins(["https://chat.example.org"]).check(host, origin)
    assert (refusal.value.status, refusal.value.code) == (403, code)


@pytest.mark.parametrize("origin", ["*", "chat.example.org", "file:///x", "https://x/y", ""])
def test_what_is_no_origin(origin: str) -> None:
    with pytest.raises(UsageError, match="no origin"):
        Origins([origin])


def test_another_page_over_http(live: Any) -> None:
    """As a browser sends it without asking before: a form's type of content."""
    crossing = {"Origin": "https://evil.example.org", "Content-Type": "text/plain"}
    refused = live.http.post(TEXT, json=BODY, headers=crossing)
    assert refused.status_code == 403
    assert refused.json()["error"]["type"] == "permission_error"
    renamed = live.http.get("/v1/models", headers={"Host": "evil.example.org"})
    assert renamed.status_code == 403
    assert live.http.post(TEXT, json=BODY, headers={"Origin": live.url}).status_code == 200


def test_an_allowed_page(serve: Any) -> None:
    own = serve(origins=("https://chat.example.org",))
    page = {"Origin": "https://chat.example.org"}
    asking = {**page, "Access-Control-Request-Method": "POST",
              "Access-Control-Request-Headers": "authorization,content-type"}  # fmt: skip
    may = own.http.options(TEXT, headers=asking)
    assert may.status_code == 200
    assert may.headers["access-control-allow-origin"] == "https://chat.example.org"
    for stream in (False, True):
        answer = own.http.post(TEXT, json={**BODY, "stream": stream}, headers=page)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == "https://chat.example.org"
    assert own.http.post(TEXT, json=BODY, headers={"Origin": "https://x.org"}).status_code == 403


def test_a_server_with_keys_is_known_by_any_name(serve: Any) -> None:
    own = serve(Keys(["secret-of-ann"]))
    asked = {"Host": "models.example.org", "Authorization": "Bearer secret-of-ann"}
    assert own.http.get("/v1/models", headers=asked).status_code == 200
