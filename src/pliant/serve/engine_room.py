"""`EngineRoom`: the one thread that runs engines, a step at a time, as the scheduler plans it.

Everything a client asks crosses into it by `submit` and `cancel`, everything that comes out by the
sink of the request. A request that goes wrong ends with an error of its own and leaves the others
as they were: a batch that fails is computed again one by one, and only what fails then is ended.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import msgspec
import numpy as np

from pliant.errors import GenerationError, OutOfSpaceError, PliantError, UsageError
from pliant.runtime.chunk import Chunk
from pliant.serve.scheduling import Copy, Drop, Limits, Make, Plan, Scheduler, Slice, Take, Work
from pliant.serve.scheduling.pool import CacheRules
from pliant.serve.writer import Emission, Writer

#: Seconds to wait where everything that waits depends on something else.
_IDLE_SECONDS = 0.05


class Failure(msgspec.Struct, frozen=True):
    """The end of a request that went wrong; `kind` is `deadline`, `request` or `server`."""

    kind: str
    message: str


#: Takes what a request gives, in the engine's thread; must be quick and must not raise.
Sink = Callable[[Emission | Failure], None]


class StepRecord(msgspec.Struct, frozen=True):
    """One step as it happened, for metrics."""

    lane: str
    sequences: int
    tokens: int
    nanoseconds: int


class LaneEngine(Protocol):
    """What the room needs of an engine."""

    @property
    def max_context(self) -> int:
        """Most tokens of one sequence."""

    @property
    def sequence_cache(self) -> CacheRules:
        """What its caches take and where they can be cut."""

    def new_cache(self, capacity: int) -> Any:
        """An empty cache that can `copy` and `truncate`."""

    def forward_chunk(self, chunks: Any) -> Any:
        """Logits for each chunk."""

    def greedy(self, chunks: Any) -> Any:
        """The likeliest tokens for each chunk."""


class _Job:
    def __init__(self, writer: Writer, sink: Sink) -> None:
        self.writer, self.sink = writer, sink
        self.has_written = False


class EngineRoom:
    """Runs works on lanes in a thread of its own until `close`."""

    def __init__(self, limits: Limits, watch: Callable[[StepRecord], None] | None = None) -> None:
        self.scheduler = Scheduler(limits)
        self._watch = watch
        self._changed = threading.Condition()
        self._engines: dict[str, LaneEngine] = {}
        self._caches: dict[int, Any] = {}
        self._jobs: dict[str, _Job] = {}
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="pliant-engine", daemon=True)
        self._thread.start()

    def open_lane(self, name: str, engine: LaneEngine) -> None:
        """Let an engine take works under `name`."""
        with self._changed:
            self.scheduler.add_lane(name, engine.sequence_cache, engine.max_context)
            self._engines[name] = engine

    def close_lane(self, name: str) -> None:
        """Forget an idle lane; `UsageError` while works are on it. The engine stays open."""
        with self._changed:
            self.scheduler.remove_lane(name)
            del self._engines[name]
            self._changed.notify()

    def submit(self, work: Work, writer: Writer, sink: Sink) -> None:
        """Accept a work; raises what `Scheduler.submit` raises, and `UsageError` when closing."""
        with self._changed:
            if self._closing:
                raise UsageError("The server is closing; ask another one.")
            self.scheduler.submit(work)
            self._jobs[work.name] = _Job(writer, sink)
            self._changed.notify()

    def cancel(self, name: str) -> None:
        """A request is no longer wanted; nothing more comes to its sink after the running step."""
        with self._changed:
            self.scheduler.cancel(name)
            self._jobs.pop(name, None)
            self._changed.notify()

    @property
    def is_alive(self) -> bool:
        """Whether the thread that computes is there."""
        return self._thread.is_alive()

    def close(self) -> None:
        """End what still runs with an error, stop the thread, give all caches back."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while self._wait_for_work():
            with self._changed:
                plan = self.scheduler.plan(time.monotonic_ns())
            self._expire(plan)
            if not plan.slices and not plan.moves:
                with self._changed:
                    self._changed.wait(_IDLE_SECONDS)
                continue
            self._step(plan)
        for name in list(self._jobs):
            self._fail(name, "server", "The server was stopped before this text was finished.")
        self._caches.clear()

    def _wait_for_work(self) -> bool:
        with self._changed:
            while not self._closing and not self.scheduler.has_work:
                self._changed.wait()
            return not self._closing

    def _expire(self, plan: Plan) -> None:
        for name in plan.expired:
            job = self._jobs.pop(name, None)
            if job is not None:
                job.sink(Failure("deadline", "The deadline of this request has passed."))

    def _step(self, plan: Plan) -> None:
        """Carry out one plan; whatever happens, the scheduler hears of it."""
        started = time.monotonic_ns()
        written: dict[str, tuple[_Job, Emission]] = {}
        try:
            self._move(plan)
            for part, result in self._compute(plan):
                job = self._jobs.get(part.name)
                # One that was cancelled meanwhile has no job, and the scheduler leaves it out.
                emission = self._write(job, part, result) if job else None
                if job and emission:
                    written[part.name] = job, emission
        except Exception as error:
            for part in plan.slices:
                self._fail(part.name, "server", f"The step failed: {error}")
        elapsed = time.monotonic_ns() - started
        chosen = {name: emission.token for name, (_, emission) in written.items()}
        finished = {name for name, (_, emission) in written.items() if emission.finish_reason}
        with self._changed:
            for name in finished:
                self._jobs.pop(name, None)
            self.scheduler.complete(plan, chosen, finished, elapsed)
        # Told last, so that whoever hears of an end finds its prefix kept.
        for job, emission in written.values():
            job.sink(emission)
        if self._watch is not None and plan.slices:
            self._watch(StepRecord(plan.lane, len(plan.slices), plan.num_tokens, elapsed))

    def _move(self, plan: Plan) -> None:
        caches = self._caches
        for move in plan.moves:
            match move:
                case Make(cache, lane, capacity):
                    try:
                        caches[cache] = self._engines[lane].new_cache(capacity)
                    except OutOfSpaceError:
                        # Whose it was will miss it, and fail alone.
                        continue
                case Copy(cache, source, length, capacity):
                    try:
                        caches[cache] = caches[source].copy(length, capacity)
                    except (MemoryError, KeyError):
                        continue
                case Take(cache, length):
                    if cache in caches:
                        caches[cache].truncate(length)
                case Drop(cache):
                    caches.pop(cache, None)

    def _compute(self, plan: Plan) -> list[tuple[Slice, Any]]:
        """Logits or the likeliest tokens of each slice that could be computed."""
        parts = [part for part in plan.slices if self._is_ready(part)]
        if not parts:
            return []
        engine = self._engines[plan.lane]
        greedy = all(self._takes_token(part) for part in parts)
        run = engine.greedy if greedy else engine.forward_chunk
        try:
            return list(zip(parts, run([self._chunk(part) for part in parts]), strict=True))
        except Exception as error:
            if len(parts) == 1:
                self._fail_with(parts[0].name, error)
                return []
        results: list[tuple[Slice, Any]] = []
        for part in parts:
            try:
                results.append((part, run([self._chunk(part)])[0]))
            except Exception as error:
                self._fail_with(part.name, error)
        return results

    def _is_ready(self, part: Slice) -> bool:
        """Whether the cache of a slice is there and holds what it should."""
        cache = self._caches.get(part.cache)
        if cache is None:
            self._fail(part.name, "server", "There was no memory for the cache of this text.")
            return False
        if cache.length > part.begin:
            cache.truncate(part.begin)
        return True

    def _takes_token(self, part: Slice) -> bool:
        job = self._jobs.get(part.name)
        return not part.all_logits and (
            not part.chooses or job is None or job.writer.is_plain_greedy
        )

    def _chunk(self, part: Slice) -> Chunk:
        logits = "all" if part.all_logits else "last" if part.chooses else "none"
        tokens = np.asarray(part.tokens, np.int32)
        return Chunk(tokens, self._caches[part.cache], logits=logits)  # type: ignore[arg-type]

    def _write(self, job: _Job, part: Slice, result: Any) -> Emission | None:
        """Hand the result of a slice to its writer; what that says."""
        try:
            if part.all_logits:
                job.writer.read_prompt(part.begin, result)
            if not part.chooses:
                return None
            takes_token = result.dtype == np.int32
            if takes_token:
                emission = job.writer.accept_token(int(result[-1]))
            else:
                emission = job.writer.accept(result[-1])
        except Exception as error:
            self._fail_with(part.name, error)
            return None
        if not job.has_written:
            job.has_written = True
            with self._changed:
                emission.reused_tokens = self.scheduler.reused_tokens(part.name)
        emission.nanoseconds = time.monotonic_ns()
        return emission

    def _fail_with(self, name: str, error: Exception) -> None:
        kind = "request" if isinstance(error, GenerationError) else "server"
        said = str(error) if isinstance(error, PliantError) else f"{type(error).__name__}: {error}"
        self._fail(name, kind, said)

    def _fail(self, name: str, kind: str, message: str) -> None:
        with self._changed:
            self.scheduler.fail(name)
            job = self._jobs.pop(name, None)
        if job is not None:
            job.sink(Failure(kind, message))

    def snapshot(self) -> Mapping[str, Any]:
        """Numbers for metrics, taken together: queues, bytes, counts."""
        with self._changed:
            scheduler = self.scheduler
            return {
                "running": scheduler.num_running,
                "waiting": scheduler.num_waiting,
                "cache_bytes": scheduler.pool.used_bytes,
                "prefix_bytes": scheduler.pool.stored_bytes,
                "cache_budget": scheduler.limits.cache_bytes,
                "counts": msgspec.structs.asdict(scheduler.counts),
            }
