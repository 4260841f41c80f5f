"""`Outbox`: what texts have written, until their readers are told, many tokens at a time."""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

from pliant.serve.writer import Emission, Writer

#: What was written waits no longer than this for what comes next: a third of a picture on a screen.
#: Every telling costs the event loop and the client a wake-up each, which is most of what serving
#: a small model costs; at half the time one stream of a 15M model is a tenth slower.
_TELLING_NANOSECONDS = 6_000_000


class Failure(msgspec.Struct, frozen=True):
    """The end of a request that went wrong; `kind` is `deadline`, `request` or `server`."""

    kind: str
    message: str


#: Takes what a request gives, in the engine's thread; must be quick and must not raise.
Sink = Callable[[Emission | Failure], None]


class Job:
    """A text that is written, and who is told of it."""

    def __init__(self, writer: Writer, sink: Sink) -> None:
        self.writer, self.sink = writer, sink
        self.has_written = False


class Outbox:
    """What the works gave and nobody has been told yet."""

    def __init__(self, told: Callable[[], None]) -> None:
        self._events: list[tuple[Job, Emission | Failure]] = []
        self._call_when_told = told
        self._told = 0
        self._is_urgent = False

    def put(self, job: Job, event: Emission | Failure, *, urgent: bool) -> None:
        """Keep an event; all are told as soon as one of them is urgent."""
        self._events.append((job, event))
        self._is_urgent |= urgent

    @property
    def nanoseconds_left(self) -> int:
        """Until the next telling is due; 0 or less where it is."""
        if self._is_urgent:
            return 0
        return self._told + _TELLING_NANOSECONDS - time.monotonic_ns()

    def tell_if_due(self, next_step: int) -> None:
        """Tell everything where something is urgent, or would wait too long for a step that takes
        `next_step` nanoseconds.
        """
        if self.nanoseconds_left < next_step:
            self.tell()

    def tell(self) -> None:
        """Tell everything in its order; that is when a token is there for its reader."""
        now = time.monotonic_ns()
        for job, event in self._events:
            if isinstance(event, Emission):
                event.nanoseconds = now
            job.sink(event)
        self._events.clear()
        self._told, self._is_urgent = now, False
        self._call_when_told()
