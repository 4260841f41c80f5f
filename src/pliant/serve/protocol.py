"""`patient_protocol`: uvicorn's HTTP protocol, which also ends connections of late headers, and
whose own refusals are error objects.

uvicorn waits for a request's line and headers as long as the client likes, so a few hundred
connections that send a byte now and then would hold every file descriptor (slowloris).
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from pliant.serve.api.errors import ApiError


def patient_protocol(header_seconds: float) -> Any:
    """A protocol class for `uvicorn.Config(http=...)`.

    A connection may take `header_seconds` from when it was made, or from the first byte of its
    next request, until the headers are whole; then it gets 408 and is closed.
    """
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class PatientProtocol(H11Protocol):
        """H11Protocol with a timer for headers."""

        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            """The first headers are due."""
            super().connection_made(transport)
            self._start_timer()

        def data_received(self, data: bytes) -> None:
            """Headers are due from their first byte on, until they are whole."""
            if self._timer is None and not self._is_answering():
                self._start_timer()
            super().data_received(data)
            if self._is_answering():
                self._stop_timer()

        def connection_lost(self, exc: Exception | None) -> None:
            """Nothing is due any more."""
            self._stop_timer()
            super().connection_lost(exc)

        def send_400_response(self, msg: str) -> None:
            """Refuse what is no HTTP, or has too long a head."""
            most = self.conn._max_incomplete_event_size
            said = f"The request is not HTTP, or its head has more than {most} bytes."
            self.transport.write(
                _whole("400 Bad Request", ApiError(400, said, code="invalid_http"))
            )
            self.transport.close()

        def _is_answering(self) -> bool:
            return self.cycle is not None and not self.cycle.response_complete

        def _start_timer(self) -> None:
            self._timer = self.loop.call_later(header_seconds, self._give_up)

        def _stop_timer(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _give_up(self) -> None:
            self._timer = None
            if not self._is_answering() and not self.transport.is_closing():
                self.transport.write(_late(header_seconds))
                self.transport.close()

    return PatientProtocol


def _late(seconds: float) -> bytes:
    """A whole answer that says so."""
    said = f"The headers did not come within {seconds:g} s."
    return _whole("408 Request Timeout", ApiError(408, said))


def _whole(status: str, error: ApiError) -> bytes:
    """An answer for those whom no application hears."""
    body = msgspec.json.encode(error.body)
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body
