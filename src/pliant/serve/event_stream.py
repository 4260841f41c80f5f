"""`EventStream`: server-sent events, exactly as clients of the OpenAI API read them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any

import msgspec

from pliant.serve.api.errors import ApiError, api_error
from pliant.serve.safety import GuardLimits, Receive, Scope, Send, refuse

#: Seconds without an event after which a comment tells proxies that the connection lives.
KEEP_ALIVE_SECONDS = 10.0
_DONE = b"data: [DONE]\n\n"


class EventStream:
    """An ASGI response whose events come from an iterator, as JSON, those that go out together in
    one list; `closed` is called at its end, whether the client has gone or not, and is told which.

    Nothing is sent before the first event or `keep_alive` seconds, so that a request that fails at
    once has the status of its error. One that fails later gets an error event, and the stream ends
    without `[DONE]`. When the client goes away the iterator is closed.
    """

    def __init__(
        self,
        events: AsyncIterator[Sequence[bytes]],
        headers: Mapping[str, str],
        closed: Callable[[bool], Awaitable[None]],
        keep_alive: float = KEEP_ALIVE_SECONDS,
    ) -> None:
        self._events, self._headers, self._closed = events, dict(headers), closed
        self._keep_alive = keep_alive
        self._started = False
        self._raw_send: Send
        self._turn = asyncio.Lock()
        self._sending_since: float | None = None
        self._last_sent = asyncio.get_running_loop().time()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all events, unless the client goes first or does not read."""
        # Timing every event would cost more than the event, so one task watches over all.
        limits: GuardLimits = scope["pliant.limits"]
        self._raw_send = scope["pliant.send"]
        writing = asyncio.ensure_future(self._write())
        watching = asyncio.ensure_future(self._watch(limits.send_seconds))
        leaving = asyncio.ensure_future(_until_gone(receive))
        tasks = {writing, watching, leaving}
        gone = True
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            gone = not writing.done() or writing.exception() is not None
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._events.aclose()  # type: ignore[attr-defined]
            await self._closed(gone)

    async def _write(self) -> None:
        try:
            async for events in self._events:
                if events:
                    await self._send(b"".join(b"data: %b\n\n" % event for event in events))
            await self._send(_DONE, last=True)
        except OSError:
            raise
        except Exception as error:
            await self._send_error(api_error(error))

    async def _watch(self, send_seconds: float) -> None:
        """Send comments while nothing else comes; return where a client has stopped reading."""
        while True:
            now = asyncio.get_running_loop().time()
            wait = self._keep_alive
            if self._sending_since is not None:
                if now - self._sending_since >= send_seconds:
                    return
                wait = min(wait, send_seconds)
            elif now - self._last_sent >= self._keep_alive:
                await self._send(b": keep-alive\n\n")
            else:
                wait = self._keep_alive - (now - self._last_sent)
            await asyncio.sleep(wait)

    async def _send_error(self, error: ApiError) -> None:
        if not self._started:
            error.headers.update(self._headers)
            await refuse(self._raw_send, error)
            return
        await self._send(b"data: " + msgspec.json.encode(error.body) + b"\n\n", last=True)

    async def _send(self, body: bytes, last: bool = False) -> None:
        clock = asyncio.get_running_loop().time
        async with self._turn:
            self._sending_since = clock()
            if not self._started:
                self._started = True
                await self._raw_send(self._start())
            message = {"type": "http.response.body", "body": body, "more_body": not last}
            await self._raw_send(message)
            self._sending_since, self._last_sent = None, clock()

    def _start(self) -> dict[str, Any]:
        headers = {
            "content-type": "text/event-stream; charset=utf-8",
            "cache-control": "no-cache",
            "x-accel-buffering": "no",
            **self._headers,
        }
        encoded = [(name.lower().encode(), text.encode()) for name, text in headers.items()]
        return {"type": "http.response.start", "status": 200, "headers": encoded}


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
