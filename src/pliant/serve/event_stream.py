"""`EventStream`: server-sent events, exactly as clients of the OpenAI API read them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import msgspec

from pliant.serve.api.errors import ApiError, api_error
from pliant.serve.safety import Receive, Scope, Send, refuse

#: Seconds without an event after which a comment tells proxies that the connection lives.
KEEP_ALIVE_SECONDS = 10.0
_DONE = b"data: [DONE]\n\n"


class EventStream:
    """An ASGI response whose events come from an iterator; `closed` is called at its end,
    whether the client has gone or not, and is told which.

    Nothing is sent before the first event or `keep_alive` seconds, so that a request that fails at
    once has the status of its error. One that fails later gets an error event, and the stream ends
    without `[DONE]`. When the client goes away the iterator is closed.
    """

    def __init__(
        self,
        events: AsyncIterator[dict[str, Any]],
        headers: Mapping[str, str],
        closed: Callable[[bool], Awaitable[None]],
        keep_alive: float = KEEP_ALIVE_SECONDS,
    ) -> None:
        self._events, self._headers, self._closed = events, dict(headers), closed
        self._keep_alive = keep_alive
        self._started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all events, unless the client goes first."""
        writing = asyncio.ensure_future(self._write(send))
        leaving = asyncio.ensure_future(_until_gone(receive))
        gone = True
        try:
            await asyncio.wait({writing, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if writing.done():
                gone = isinstance(writing.exception(), TimeoutError | OSError)
        finally:
            for task in (writing, leaving):
                task.cancel()
            await asyncio.gather(writing, leaving, return_exceptions=True)
            await self._events.aclose()  # type: ignore[attr-defined]
            await self._closed(gone)

    async def _write(self, send: Send) -> None:
        coming = asyncio.ensure_future(anext(self._events, None))
        try:
            while True:
                done, _ = await asyncio.wait({coming}, timeout=self._keep_alive)
                if not done:
                    await self._send(send, b": keep-alive\n\n")
                    continue
                event = coming.result()
                if event is None:
                    break
                await self._send(send, b"data: " + msgspec.json.encode(event) + b"\n\n")
                coming = asyncio.ensure_future(anext(self._events, None))
            await self._send(send, _DONE, last=True)
        except (TimeoutError, OSError):
            raise
        except Exception as error:
            await self._send_error(send, api_error(error))
        finally:
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)

    async def _send_error(self, send: Send, error: ApiError) -> None:
        if not self._started:
            await refuse(send, error)
            return
        await self._send(send, b"data: " + msgspec.json.encode(error.body) + b"\n\n", last=True)

    async def _send(self, send: Send, body: bytes, last: bool = False) -> None:
        if not self._started:
            self._started = True
            headers = {
                "content-type": "text/event-stream; charset=utf-8",
                "cache-control": "no-cache",
                "x-accel-buffering": "no",
                **self._headers,
            }
            encoded = [(name.lower().encode(), text.encode()) for name, text in headers.items()]
            await send({"type": "http.response.start", "status": 200, "headers": encoded})
        await send({"type": "http.response.body", "body": body, "more_body": not last})


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
