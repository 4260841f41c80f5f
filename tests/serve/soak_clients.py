"""`Client`: one thread that sends requests of every kind, as they come and as they should not."""

from __future__ import annotations

import json
import random
import socket
import time
from http.client import HTTPConnection, HTTPException, HTTPResponse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from soak import Soak

PATIENCE = 60
PROMPTS = [f"{'The fox went home. ' * (1 + place % 4)}{place}" for place in range(12)]
#: Seconds after which a kept connection is not trusted: the server closes idle ones.
_IDLE_SECONDS = 5.0


class RefusedError(Exception):
    """The server has enough to do."""


class Client:
    """One thread's connection, kept from request to request."""

    def __init__(self, soak: Soak, draw: random.Random) -> None:
        self.soak, self.draw = soak, draw
        host, port = soak.url.removeprefix("http://").split(":")
        self.address = host, int(port)
        self._http = HTTPConnection(*self.address, timeout=PATIENCE)
        self._used, self._kills = 0.0, 0

    def post(self, content: bytes) -> HTTPResponse:
        """The answer to a request for a completion, its body not read yet; or `RefusedError`."""
        # One that lived through a kill or a long rest may be closed at the other end.
        if self._kills != self.soak.kills or time.monotonic() - self._used > _IDLE_SECONDS:
            self.close()
        self._kills, self._used = self.soak.kills, time.monotonic()
        self._http.request("POST", "/v1/completions", content)
        answer = self._http.getresponse()
        if answer.status == 429:
            answer.read()
            assert int(answer.headers["retry-after"]) >= 1
            raise RefusedError
        return answer

    def close(self) -> None:
        """Leave, whatever still comes."""
        self._http.close()

    def one(self) -> str | None:
        """One request of any kind, with exactly one outcome; None where it is a wrong one."""
        soak = self.soak
        kind, kills, away = self.draw.choice(KINDS), soak.kills, soak.away
        try:
            outcome = kind(self)
        except RefusedError:
            outcome = "refused"
        except Exception as error:
            self.close()
            cut_off = isinstance(error, HTTPException | OSError)
            if not cut_off or not (away or kills != soak.kills):
                soak.fail(f"{kind.__name__}: {type(error).__name__}: {error}")
                return None
            outcome = "cut off"
        soak.count(outcome)
        return outcome


def ask(client: Client) -> str:
    """A whole answer."""
    place = client.draw.randrange(len(PROMPTS))
    answer = client.post(client.soak.body(PROMPTS[place]))
    content = answer.read()
    assert answer.status == 200, content
    return client.soak.judge(place, json.loads(content)["choices"][0]["text"])


def stream(client: Client, pause: float = 0) -> str:
    """An answer token by token."""
    place, text, done = client.draw.randrange(len(PROMPTS)), "", False
    answer = client.post(client.soak.body(PROMPTS[place], stream=True))
    for line in answer:
        time.sleep(pause)
        done = done or line == b"data: [DONE]\n"
        if line.startswith(b"data: {"):
            text += json.loads(line.removeprefix(b"data: "))["choices"][0]["text"]
    if not done:
        raise ConnectionError("a stream ended without its mark")
    return client.soak.judge(place, text)


def read_slowly(client: Client) -> str:
    """A stream whose reader takes his time."""
    return stream(client, 0.02)


def leave(client: Client) -> str:
    """A stream whose reader goes."""
    answer = client.post(client.soak.body(client.draw.choice(PROMPTS), stream=True))
    for _ in range(client.draw.randrange(12)):
        answer.readline()
    client.close()
    return "left"


def send_nonsense(client: Client) -> str:
    """A body that is no request."""
    answer = client.post(client.draw.randbytes(client.draw.randrange(60)))
    content = answer.read()
    assert 400 <= answer.status < 500, content
    return "malformed"


def hang_up(client: Client) -> str:
    """A connection that is closed within a request."""
    text = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 90\r\n\r\n{"
    with socket.create_connection(client.address, timeout=PATIENCE) as raw:
        raw.sendall(text[: client.draw.randrange(1, len(text))])
    return "hung up"


KINDS = [ask, ask, stream, read_slowly, leave, send_nonsense, hang_up]
