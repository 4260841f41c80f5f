"""`exchange`: one request over a connection of its own; what comes is kept with its times.

Nothing is decoded while bytes still come. A generator that parses every token as it arrives takes
the machine from the server it measures: with a client library that was 0.4 ms for each token.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import msgspec

from pliant.errors import DataError, UnsupportedError, UsageError

_PORTS = {"http": 80, "https": 443}


class Reply(msgspec.Struct, frozen=True):
    """The status of an answer, and the pieces of its body with the nanoseconds they came at."""

    status: int
    pieces: tuple[tuple[int, bytes], ...]

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """Every line of the body and when it was whole."""
        rest, came = b"", 0
        for came, piece in self.pieces:
            *whole, rest = (rest + piece).split(b"\n")
            for line in whole:
                yield came, line.rstrip(b"\r")
        if rest:
            yield came, rest


def check_address(url: str) -> None:
    """`UsageError` for what is no address of a server."""
    parts = urlsplit(url)
    try:
        known = parts.scheme in _PORTS and bool(parts.hostname) and parts.port != 0
    except ValueError:
        known = False
    if not known:
        raise UsageError(f"{url!r} is no address; write http://HOST:PORT.")


async def exchange(url: str, headers: Mapping[str, str], body: bytes, seconds: float) -> Reply:
    """POST `body` and read until the server closes; `TimeoutError` after `seconds`.

    `OSError` where nobody answers, `DataError` where the answer is not HTTP or breaks off,
    `UsageError` for an address that is none, `UnsupportedError` where h11 is missing.
    """
    check_address(url)
    parts = urlsplit(url)
    assert parts.hostname is not None, "an address has a host"
    reader = _reader()
    sent = reader.request(parts.path or "/", parts.netloc, headers, body)
    asked = asyncio.get_running_loop().create_connection(
        lambda: _Connection(sent),
        parts.hostname,
        parts.port or _PORTS[parts.scheme],
        ssl=ssl.create_default_context() if parts.scheme == "https" else None,
    )
    async with asyncio.timeout(seconds):
        transport, connection = await asked
        try:
            await connection.ended
        finally:
            transport.close()
    return reader.reply(connection.pieces)


class _Connection(asyncio.Protocol):
    def __init__(self, request: bytes) -> None:
        self._request = request
        self.pieces: list[tuple[int, bytes]] = []
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        """Ask at once."""
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Note what came, and when."""
        self.pieces.append((time.monotonic_ns(), data))

    def connection_lost(self, error: Exception | None) -> None:
        """The server has said all, or the connection broke; what came tells which."""
        if not self.ended.done():
            self.ended.set_result(None)


class _Reader:
    """HTTP/1.1 by the library h11, after the fact."""

    def __init__(self, library: Any) -> None:
        self._h11 = library
        self._connection = library.Connection(library.CLIENT)

    def request(self, path: str, host: str, headers: Mapping[str, str], body: bytes) -> bytes:
        """The bytes of a request after which the server closes."""
        own = {"Host": host, "Content-Type": "application/json", "Connection": "close",
               "Content-Length": str(len(body)), **headers}  # fmt: skip
        h11 = self._h11
        events = (
            h11.Request(method="POST", target=path, headers=list(own.items())),
            h11.Data(data=body),
            h11.EndOfMessage(),
        )
        return b"".join(map(self._connection.send, events))

    def reply(self, received: list[tuple[int, bytes]]) -> Reply:
        """The answer in what was received."""
        h11, status, pieces = self._h11, 0, []
        try:
            for came, data in [*received, (0, b"")]:
                self._connection.receive_data(data)
                while (event := self._connection.next_event()) is not h11.NEED_DATA:
                    match event:
                        case h11.Response():
                            status = int(event.status_code)
                        case h11.Data():
                            pieces.append((came, bytes(event.data)))
                        case h11.EndOfMessage():
                            return Reply(status, tuple(pieces))
        except h11.RemoteProtocolError as error:
            raise DataError(f"The answer broke off or is not HTTP: {error}.") from error
        raise DataError("The answer has no end.")


def _reader() -> _Reader:
    try:
        import h11
    except ImportError as error:
        raise UnsupportedError("Making load needs h11; run pip install 'pliant[load]'.") from error
    return _Reader(h11)
