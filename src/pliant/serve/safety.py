"""`Guard`: what stands between the network and the server; keys, sizes, rates, slow clients."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import re
import time
import uuid
from collections import OrderedDict
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

import msgspec

from pliant.errors import UsageError
from pliant.serve.api.errors import ApiError
from pliant.serve.origins import Origins

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

#: Paths that say nothing of what clients do, open to everybody.
_OPEN_PATHS = frozenset({"/", "/health"})
#: Clients whose rate is remembered.
_MAX_CLIENTS = 10_000
#: Seconds in which the rest of a refused request may still come.
_LINGER_SECONDS = 2.0
#: What a client may give as the id of its request.
_REQUEST_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)


class GuardLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes of a request's line and headers and seconds they may take to come, the same of a body,
    seconds a client may take to read what is sent, and requests a minute of one client (0: no
    limit).
    """

    header_bytes: int = 32_768
    header_seconds: float = 10.0
    body_bytes: int = 4_000_000
    body_seconds: float = 15.0
    send_seconds: float = 30.0
    requests_per_minute: int = 0


class Keys:
    """The bearer keys of a server; none of them is kept, only their hashes."""

    def __init__(self, lines: list[str]) -> None:
        self._hashes: list[tuple[str, bytes]] = []
        for place, line in enumerate(filter(None, map(str.strip, lines))):
            name, separator, key = map(str.strip, line.partition(":"))
            key = key if separator else name
            if len(key) < 8:
                raise UsageError("A key has fewer than 8 characters; make longer ones.")
            shown = name if separator else f"key-{place}"
            self._hashes.append(
                (shown, hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest())
            )

    @classmethod
    def read(cls, path: Path | None, listed: str | None) -> Keys:
        """The keys in a file, one a line as `KEY` or `NAME:KEY`, and those listed with commas."""
        lines = (listed or "").split(",")
        if path is not None:
            try:
                text = path.read_text("utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise UsageError(f"The keys in {path} cannot be read: {error}.") from error
            lines += [line for line in text.splitlines() if not line.lstrip().startswith("#")]
            if not any(map(str.strip, lines)):
                raise UsageError(f"{path} holds no key; write one a line.")
        return cls(lines)

    def __bool__(self) -> bool:
        return bool(self._hashes)

    def client(self, authorization: str) -> str | None:
        """The name of the client whose key a header holds; None where it holds none of them.

        Every key is compared, in constant time, whichever it is.
        """
        scheme, _, key = authorization.partition(" ")
        # A header was decoded byte by byte, so this gives back the bytes that came.
        given = hashlib.sha256(key.strip().encode("latin-1", "replace")).digest()
        found: str | None = None
        for name, known in self._hashes:
            if hmac.compare_digest(given, known):
                found = name
        return found if scheme.lower() == "bearer" else None


class RateLimit:
    """A token bucket for each client: a minute's worth at once, refilled steadily."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_minute, self._clock = per_minute, clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, client: str) -> None:
        """Count a request; `ApiError` 429 with `Retry-After` where it is one too many."""
        if self._per_minute < 1:
            return
        now = self._clock()
        left, since = self._buckets.pop(client, (float(self._per_minute), now))
        left = min(left + (now - since) * self._per_minute / 60, self._per_minute)
        if left < 1:
            self._buckets[client] = left, now
            seconds = max(1, round((1 - left) * 60 / self._per_minute + 0.5))
            raise ApiError(
                429,
                f"More than {self._per_minute} requests a minute; try again in {seconds} s.",
                code="rate_limit_exceeded",
                headers={"Retry-After": str(seconds)},
            )
        self._buckets[client] = left - 1, now
        while len(self._buckets) > _MAX_CLIENTS:
            self._buckets.popitem(last=False)


class Guard:
    """ASGI middleware: who is it, how often, how large; refusals are error objects.

    `scope["pliant.client"]` names the client for those behind it: its key, or its address;
    `pliant.request_id` is its `X-Request-Id` or a new one; `pliant.send` is the way to the client
    without a time limit, for streams that keep their own. `refused` is told of each refusal.
    """

    def __init__(
        self,
        app: Any,
        keys: Keys,
        limits: GuardLimits,
        origins: Origins | None = None,
        refused: Callable[[Scope, ApiError], object] = lambda scope, error: None,
    ) -> None:
        self._app, self._keys, self._limits = app, keys, limits
        self._origins, self._refused = origins or Origins(), refused
        self._rate = RateLimit(limits.requests_per_minute)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request pass, or answer it here."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        sent = _Sender(send, self._limits.send_seconds)
        given = _header(scope, b"x-request-id")
        scope["pliant.request_id"] = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        try:
            self._admit(scope)
            body = await self._body(scope, receive)
        except ApiError as error:
            self._refused(scope, error)
            error.headers.setdefault("X-Request-Id", scope["pliant.request_id"])
            await refuse(sent, error, lambda: self._linger(receive))
            return
        scope["pliant.limits"], scope["pliant.send"] = self._limits, send
        await self._app(scope, _replay(body, receive), sent)

    def _admit(self, scope: Scope) -> None:
        client = scope["pliant.client"] = f"address {(scope.get('client') or ['local'])[0]}"
        # What is read at once may be more than the parser would wait for.
        if _head_bytes(scope) > self._limits.header_bytes:
            raise _headers_too_large(self._limits.header_bytes)
        if not self._keys:
            self._origins.check(_header(scope, b"host"), _header(scope, b"origin"))
        elif scope["path"] not in _OPEN_PATHS:
            named = self._keys.client(_header(scope, b"authorization"))
            if named is None:
                # Guesses count too, so that there cannot be many of them.
                self._rate.take(client)
                raise ApiError(
                    401,
                    "The key is missing or wrong; send it as `Authorization: Bearer KEY`.",
                    code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )
            client = f"key {named}"
        scope["pliant.client"] = client
        if scope["method"] == "POST":
            self._rate.take(client)

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        """The whole body, within its limits."""
        most = self._limits.body_bytes
        length = _header(scope, b"content-length")
        if length.isdigit() and int(length) > most:
            raise _too_large(most)
        parts, size = [], 0
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return b""
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > most:
                        raise _too_large(most)
                    if not message.get("more_body"):
                        return b"".join(parts)
        except TimeoutError:
            raise ApiError(
                408, f"The body did not come within {self._limits.body_seconds:g} s."
            ) from None

    async def _linger(self, receive: Receive) -> None:
        """Take in what still comes of a refused request, within bounds.

        A connection that is closed with bytes unread is reset, and its client loses the answer.
        """
        left = 2 * self._limits.body_bytes
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_SECONDS):
                while left > 0:
                    message = await receive()
                    if not message.get("more_body"):
                        return
                    left -= len(message["body"])


class _Sender:
    """Sends to a client, and gives up on one that does not read."""

    def __init__(self, send: Send, seconds: float) -> None:
        self._send, self._seconds = send, seconds

    async def __call__(self, message: MutableMapping[str, Any]) -> None:
        async with asyncio.timeout(self._seconds):
            await self._send(message)


async def refuse(
    send: Send, error: ApiError, linger: Callable[[], Awaitable[None]] | None = None
) -> None:
    """Answer with an error object, and `linger` before the connection is closed."""
    body = msgspec.json.encode(error.body)
    headers = {
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        # What is left of a body that was too large or too slow must not be read as a request.
        "Connection": "close",
        **error.headers,
    }
    encoded = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": encoded})
    if linger is not None:
        await send({"type": "http.response.body", "body": body, "more_body": True})
        await linger()
        body = b""
    await send({"type": "http.response.body", "body": body})


def _head_bytes(scope: Scope) -> int:
    line = len(scope.get("raw_path") or b"") + len(scope.get("query_string") or b"")
    return line + sum(len(name) + len(value) + 4 for name, value in scope["headers"])


def _headers_too_large(most: int) -> ApiError:
    return ApiError(431, f"The headers have more than {most} bytes.", code="headers_too_large")


def _too_large(most: int) -> ApiError:
    return ApiError(413, f"The body has more than {most} bytes.", code="body_too_large")


def _header(scope: Scope, name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), "")


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body once, and then what the client does, which is to go."""
    given = False

    async def replay() -> MutableMapping[str, Any]:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
