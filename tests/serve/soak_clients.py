"""`Client`: one thread that sends requests of every kind, as they come and as they should not."""

from __future__ import annotations

import json
import random
import socket
import time
from collections.abc import Callable
from http.client import HTTPConnection, HTTPException, HTTPResponse
from typing import TYPE_CHECKING, Any

from soak_cases import CHAT, COMPLETION, Answer, Case

if TYPE_CHECKING:
    from soak import Soak

PATIENCE = 60
#: Seconds after which a kept connection is not trusted: the server closes idle ones.
_IDLE_SECONDS = 5.0


class RefusedError(Exception):
    """The server has enough to do."""


class ExpiredError(Exception):
    """The deadline of the request has passed."""


class Client:
    """One thread's connection, kept from request to request."""

    def __init__(self, soak: Soak, draw: random.Random, key: str = "") -> None:
        self.soak, self.draw = soak, draw
        host, port = soak.url.removeprefix("http://").split(":")
        self.address = host, int(port)
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = HTTPConnection(*self.address, timeout=PATIENCE)
        self._used, self._kills = 0.0, 0

    def post(self, path: str, content: bytes, **headers: str) -> HTTPResponse:
        """The answer to a request, its body not read yet; or `RefusedError`."""
        # One that lived through a kill or a long rest may be closed at the other end.
        if self._kills != self.soak.kills or time.monotonic() - self._used > _IDLE_SECONDS:
            self.close()
        self._kills, self._used = self.soak.kills, time.monotonic()
        self._http.request("POST", path, content, {**self.headers, **headers})
        answer = self._http.getresponse()
        if answer.status == 429:
            answer.read()
            assert int(answer.headers["retry-after"]) >= 1
            raise RefusedError
        return answer

    def refused(self, status: int, path: str, content: bytes, **headers: str) -> dict[str, Any]:
        """The error object of a request that gets this status."""
        answer = self.post(path, content, **headers)
        error: dict[str, Any] = json.loads(answer.read())["error"]
        assert answer.status == status and error["message"], (answer.status, error)
        return error

    def answer(self, case: Case, **more: Any) -> Answer:
        """A whole answer; or `ExpiredError`."""
        reply = self.post(case.path, case.content(**more))
        found = json.loads(reply.read())
        if reply.status != 200:
            raise _error(found)
        return Answer.of(found)

    def stream(
        self, case: Case, answer: Answer, pause: float = 0, most_lines: int = 10**9, **more: Any
    ) -> None:
        """Let `answer` grow as a stream comes, with a pause at each line, and leave it behind the
        last of `most_lines`; or `ExpiredError`.
        """
        usage = {"include_usage": True}
        reply = self.post(case.path, case.content(stream=True, stream_options=usage, **more))
        if reply.status != 200:
            raise _error(json.loads(reply.read()))
        done = False
        for place, line in enumerate(reply):
            if place == most_lines:
                self.close()
                return
            done = done or line == b"data: [DONE]\n"
            if line.startswith(b"data: {"):
                found = json.loads(line.removeprefix(b"data: "))
                if "error" in found:
                    raise _error(found)
                answer.add(found)
            time.sleep(pause)
        if not done:
            raise ConnectionError("a stream ended without its mark")

    def close(self) -> None:
        """Leave, whatever still comes."""
        self._http.close()

    def one(self) -> str | None:
        """One request of any kind, with exactly one outcome; None where it is a wrong one."""
        soak, began = self.soak, time.monotonic()
        kind, kills, away = self.draw.choices(*KINDS)[0], soak.kills, soak.away
        try:
            outcome = kind(self)
        except RefusedError:
            outcome = "refused"
        except ExpiredError:
            self.close()
            outcome = "expired"
        except Exception as error:
            self.close()
            cut_off = isinstance(error, HTTPException | OSError)
            if not cut_off or not (away or kills != soak.kills):
                soak.fail(f"{kind.__name__}: {type(error).__name__}: {error}")
                return None
            outcome = "cut off"
        soak.count(outcome, time.monotonic() - began)
        return outcome


def _error(found: dict[str, Any]) -> Exception:
    if found["error"]["code"] == "deadline_exceeded":
        return ExpiredError()
    return AssertionError(f"an error in place of an answer: {found}")


def ask(client: Client) -> str:
    """A whole answer."""
    case = client.draw.choice(client.soak.cases)
    return client.soak.judge(case, client.answer(case))


def stream(client: Client, pause: float = 0) -> str:
    """An answer token by token."""
    case, answer = client.draw.choice(client.soak.cases), Answer()
    client.stream(case, answer, pause)
    return client.soak.judge(case, answer)


def read_slowly(client: Client) -> str:
    """A stream whose reader takes his time."""
    return stream(client, 0.01)


def leave(client: Client) -> str:
    """A stream whose reader goes; what he has seen is right."""
    case, answer = client.draw.choice(client.soak.cases), Answer()
    client.stream(case, answer, most_lines=client.draw.randrange(60))
    client.close()
    client.soak.judge_beginning(case, answer)
    return "left"


def hurry(client: Client) -> str:
    """A deadline that some answers meet; those that do are right."""
    case, answer = client.draw.choice(client.soak.cases), Answer()
    wish = {"timeout_seconds": client.draw.choice((0.03, 0.1, 0.3, 1))}
    try:
        client.stream(case, answer, pliant=wish)
    except ExpiredError:
        client.soak.judge_beginning(case, answer)
        raise
    return client.soak.judge(case, answer)


def come_too_late(client: Client) -> str:
    """A deadline that nobody can meet."""
    case = client.soak.longest
    try:
        client.answer(case, pliant={"timeout_seconds": 1e-4})
    except ExpiredError:
        return "too late"
    raise AssertionError("a text of a tenth of a millisecond")


def ask_too_much(client: Client) -> str:
    """More than the context holds, which is never cut."""
    soak = client.soak
    longer = client.draw.randrange(1, 3 * soak.context)
    prompt = [(place * 7 + longer) % 200 + 1 for place in range(longer)]
    body = {"model": soak.model, "prompt": prompt, "max_tokens": soak.context + 1}
    error = client.refused(400, COMPLETION, json.dumps(body).encode())
    assert error["code"] == "context_length_exceeded", error
    return "too much"


def send_nonsense(client: Client) -> str:
    """A body that is no request, or one for what is not there."""
    draw, model = client.draw, client.soak.model
    status, path, fields = draw.choice((
        (400, COMPLETION, None),
        (400, CHAT, {"model": model, "messages": "Hello"}),
        (400, CHAT, {"model": model, "messages": [{"role": "fox", "content": "Hello"}]}),
        (400, COMPLETION, {"model": model, "prompt": [-1], "max_tokens": 3}),
        (400, COMPLETION, {"model": model, "prompt": "x", "n": 99}),
        (400, COMPLETION, {"model": model, "prompt": "x", "temperature": "warm"}),
        (400, COMPLETION, {"model": model, "prompt": "x", "stop": [""]}),
        (404, COMPLETION, {"model": "nobody", "prompt": "x"}),
        (404, COMPLETION, {"model": f"{model}@d99", "prompt": "x"}),
        (404, "/v1/nothing", {"model": model}),
    ))  # fmt: skip
    content = json.dumps(fields).encode()
    client.refused(status, path, draw.randbytes(draw.randrange(60)) if fields is None else content)
    # An error closes its connection.
    client.close()
    return "malformed"


def send_wrong_key(client: Client) -> str:
    """Somebody who is not known."""
    if client.headers:
        client.refused(401, COMPLETION, client.soak.longest.content(), Authorization="Bearer x")
        client.close()
    return "unknown"


def hang_up(client: Client) -> str:
    """A connection that is closed within a request."""
    lines = (
        f"POST /v1/completions HTTP/1.1\r\nHost: x\r\n{_line(client)}Content-Length: 90\r\n\r\n{{"
    )
    with socket.create_connection(client.address, timeout=PATIENCE) as raw:
        raw.sendall(lines[: client.draw.randrange(1, len(lines))].encode())
    return "hung up"


def _line(client: Client) -> str:
    return "".join(f"{name}: {value}\r\n" for name, value in client.headers.items())


#: What is sent, and how often of a hundred times.
_SHARES: dict[Callable[[Client], str], int] = {
    ask: 28, stream: 28, read_slowly: 6, leave: 10, hurry: 6, come_too_late: 3, ask_too_much: 4,
    send_nonsense: 8, send_wrong_key: 2, hang_up: 5,
}  # fmt: skip
KINDS = list(_SHARES), list(_SHARES.values())
