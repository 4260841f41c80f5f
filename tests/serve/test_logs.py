"""Every request for a text, and every one that is refused, is a line that names it."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from pliant.serve.safety import GuardLimits, Keys

TEXT = "/v1/completions"


@pytest.fixture
def told(serve: Any) -> Any:
    """A server, and the lines it writes."""

    def start(keys: Keys | None = None, **options: Any) -> tuple[Any, list[dict[str, Any]]]:
        own, lines = serve(keys, **options), []
        own.service.log = lines.append
        return own, lines

    return start


def line(lines: list[dict[str, Any]], number: int) -> dict[str, Any]:
    """Line `number`, which of a stream may come shortly after its last byte."""
    end = time.monotonic() + 20
    while len(lines) <= number:
        assert time.monotonic() < end, "nothing was written down"
        time.sleep(0.01)
    assert len(lines) == number + 1
    return lines[number]


def counted(own: Any, status: int) -> bool:
    return f'status="{status}"}} 1.0' in own.http.get("/metrics").text


def test_answers_have_the_id_that_their_client_gave(told: Any) -> None:
    own, lines = told()
    for stream in (False, True):
        body = {"prompt": "a", "max_tokens": 1, "stream": stream}
        answer = own.http.post(TEXT, json=body, headers={"X-Request-Id": f"mine-{stream}"})
        assert answer.headers["x-request-id"] == f"mine-{stream}"
        said = line(lines, int(stream))
        assert (said["request"], said["event"]) == (f"mine-{stream}", "answered")
    for bad in ("two words", "a" * 129, '"'):
        answer = own.http.post(TEXT, json={"prompt": 3}, headers={"X-Request-Id": bad})
        assert answer.headers["x-request-id"] == lines[-1]["request"] != bad


def test_refusals_before_any_handler(told: Any) -> None:
    """Of what is too large, of what is nowhere, of those who are nobody."""
    own, lines = told(guard=GuardLimits(body_bytes=100))
    for method, path, status, content in (("POST", TEXT, 413, b"a" * 200), ("GET", "/x", 404, b""),
                                          ("GET", TEXT, 405, b"")):  # fmt: skip
        answer = own.http.request(method, path, content=content)
        assert answer.status_code == lines[-1]["status"] == status
        assert answer.headers["x-request-id"] == lines[-1]["request"]
        assert lines[-1]["event"] == "refused" and lines[-1]["path"] == path
        assert counted(own, status)


def test_strangers_are_written_down_and_cannot_guess_for_ever(told: Any) -> None:
    own, lines = told(Keys(["secret-of-ann"]), guard=GuardLimits(requests_per_minute=2))
    wrong = {"Authorization": "Bearer secret-of-ben"}
    codes = [own.http.get("/v1/models", headers=wrong).status_code for _ in range(4)]
    assert codes == [401, 401, 429, 429] == [one["status"] for one in lines]
    assert all(one["client"].startswith("address ") for one in lines)
    assert not any("ben" in json.dumps(one) for one in lines)
    right = {"Authorization": "Bearer secret-of-ann"}
    assert own.http.get("/v1/models", headers=right).status_code == 200


def test_a_stream_that_fails_is_not_called_answered(told: Any) -> None:
    own, lines = told()
    for place, stream in enumerate((True, False), 1):
        own.fail_at(5)
        body = {"prompt": "a" * place, "max_tokens": 9, "stream": stream, "ignore_eos": True}
        own.http.post(TEXT, json=body)
        said = line(lines, place - 1)
        assert (said["event"], said["status"]) == ("failed", 500)
    assert 'status="500"} 2.0' in own.http.get("/metrics").text


def test_a_stream_that_fails_before_it_begins_has_its_id(told: Any) -> None:
    own, lines = told()
    body = {"prompt": "a", "max_tokens": 9, "stream": True, "pliant": {"timeout_seconds": 1e-6}}
    late = own.http.post(TEXT, json=body, headers={"X-Request-Id": "mine"})
    assert (late.status_code, late.headers["x-request-id"]) == (504, "mine")
    assert late.headers["x-pliant-subnet"] == "tiny"
    said = line(lines, 0)
    assert (said["event"], said["status"]) == ("failed", 504)


def test_a_refusal_reaches_a_client_that_still_sends(told: Any) -> None:
    """Closing with bytes unread would reset the connection, and the answer be lost with it."""
    import socket

    own, _ = told(Keys(["secret-of-ann"]))
    host, port = own.url.removeprefix("http://").split(":")
    body = b"a" * 200_000
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    with socket.create_connection((host, int(port)), timeout=20) as raw:
        raw.sendall(head)
        time.sleep(0.1)
        raw.sendall(body)
        time.sleep(0.1)
        raw.sendall(b"")
        said = raw.makefile("rb").read()
    assert said.startswith(b"HTTP/1.1 401 ")
    assert b"Bearer KEY" in said


def test_heads_that_are_too_long_or_no_http(told: Any) -> None:
    """At once or in pieces; the answer is an error object, even of what is no request."""
    import socket

    own, _ = told(guard=GuardLimits(header_bytes=2_000))
    host, port = own.url.removeprefix("http://").split(":")
    long = own.http.get("/v1/models", headers={"X-Long": "a" * 3_000})
    assert (long.status_code, long.json()["error"]["code"]) == (431, "headers_too_large")
    assert own.http.get("/v1/models/" + "a" * 3_000).status_code == 431
    for sent in (b"hello\r\n\r\n", b"GET / HTTP/1.1\r\nX-Long: " + b"a" * 300_000):
        with socket.create_connection((host, int(port)), timeout=20) as raw:
            raw.sendall(sent)
            said = raw.recv(4_000)
        assert said.startswith(b"HTTP/1.1 400 ") and b"invalid_http" in said
    assert own.http.get("/v1/models").status_code == 200
