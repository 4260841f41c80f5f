"""`EngineRoom`: the one thread that runs engines, a step at a time, as the scheduler plans it.

Everything a client asks crosses into it by `submit` and `cancel`, everything that comes out by the
sink of the request. A request that goes wrong ends with an error of its own and leaves the others
as they were: a batch that fails is computed again one by one, and only what fails then is ended.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import msgspec
import numpy as np

from pliant.errors import GenerationError, OutOfSpaceError, PliantError, UsageError
from pliant.runtime.chunk import Chunk
from pliant.runtime.engine import Interrupt
from pliant.serve.outbox import Failure, Job, Outbox, Sink
from pliant.serve.scheduling import Copy, Drop, Limits, Make, Plan, Scheduler, Slice, Take, Work
from pliant.serve.scheduling.pool import CacheRules
from pliant.serve.writer import Emission, Writer

#: Seconds to wait where everything that waits depends on something else.
_IDLE_SECONDS = 0.05


class StepRecord(msgspec.Struct, frozen=True):
    """So many steps as they happened, for metrics; tokens and nanoseconds are those of each."""

    lane: str
    sequences: int
    tokens: int
    nanoseconds: int
    steps: int = 1


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

    def continue_texts(
        self,
        caches: Any,
        tokens: Any,
        steps: int,
        *,
        samplers: Any,
        ends: Any,
        interrupt: Interrupt,
    ) -> Any:
        """The tokens `[steps, caches]` of some steps, each computing those before; the likeliest
        where `samplers` is None.
        """


class _Run:
    """A plan as it is carried out: what has come of it, and what is next."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.started = plan, time.monotonic_ns()
        self.steps = 0
        self.parts: tuple[Slice, ...] = plan.slices
        self.chosen: dict[str, list[int]] = {part.name: [] for part in plan.slices}
        self.finished: set[str] = set()

    @property
    def goes_on(self) -> bool:
        """Whether the next step is one of the plan: all that were in it write on."""
        whole = len(self.parts) == len(self.plan.slices) > 0
        return whole and not self.finished and self.steps < self.plan.steps

    @property
    def step_nanoseconds(self) -> int:
        """What a step has taken so far, in the mean."""
        return (time.monotonic_ns() - self.started) // max(self.steps, 1)

    def steps_within(self, nanoseconds: int) -> int:
        """Steps that are left and may take so long; one at least."""
        most = nanoseconds // max(self.step_nanoseconds, 1)
        return max(min(self.plan.steps - self.steps, most), 1)


class EngineRoom:
    """Runs works on lanes in a thread of its own until `close`.

    `watch` is told of steps, and `told` is called when the sinks have got all that there is for
    them; both in that thread.
    """

    def __init__(
        self,
        limits: Limits,
        watch: Callable[[StepRecord], None] | None = None,
        told: Callable[[], None] = lambda: None,
    ) -> None:
        self.scheduler = Scheduler(limits)
        self._watch = watch
        self._changed = threading.Condition()
        self._engines: dict[str, LaneEngine] = {}
        self._caches: dict[int, Any] = {}
        self._jobs: dict[str, Job] = {}
        self._outbox = Outbox(told)
        #: Set when something has come or gone since the running step was planned.
        self._interrupt = Interrupt()
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
            self._jobs[work.name] = Job(writer, sink)
            self._plan_again()

    def cancel(self, name: str) -> None:
        """A request is no longer wanted; nothing that is computed from now on comes to its sink."""
        with self._changed:
            self.scheduler.cancel(name)
            self._jobs.pop(name, None)
            self._plan_again()

    @property
    def is_alive(self) -> bool:
        """Whether the thread that computes is there."""
        return self._thread.is_alive()

    def close(self) -> None:
        """End what still runs with an error, stop the thread, give all caches back."""
        with self._changed:
            self._closing = True
            self._plan_again()
        self._thread.join()

    def _plan_again(self) -> None:
        """With the lock held: let the thread plan again, as soon as its step is done."""
        self._interrupt.set()
        self._changed.notify()

    def _run(self) -> None:
        while self._wait_for_work():
            with self._changed:
                self._interrupt.clear()
                plan = self.scheduler.plan(time.monotonic_ns())
            self._expire(plan)
            if not plan.slices and not plan.moves:
                self._outbox.tell()
                with self._changed:
                    self._changed.wait(_IDLE_SECONDS)
                continue
            self._carry_out(plan)
        for name in list(self._jobs):
            self._fail(name, "server", "The server was stopped before this text was finished.")
        self._outbox.tell()
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
                late = Failure("deadline", "The deadline of this request has passed.")
                self._outbox.put(job, late, urgent=True)

    def _carry_out(self, plan: Plan) -> None:
        """One plan; whatever happens, the scheduler hears of it."""
        run = _Run(plan)
        try:
            self._move(plan)
            self._step(run)
            while run.goes_on and not self._interrupt.is_set:
                self._outbox.tell_if_due(run.step_nanoseconds)
                self._step_on(run)
        except Exception as error:
            for part in plan.slices:
                self._fail(part.name, "server", f"The step failed: {error}")
        elapsed, steps = time.monotonic_ns() - run.started, max(run.steps, 1)
        with self._changed:
            for name in run.finished:
                self._jobs.pop(name, None)
            self.scheduler.complete(plan, run.chosen, run.finished, elapsed, steps)
        # The last is told after that, so that whoever hears of an end finds its prefix kept.
        self._outbox.tell_if_due(elapsed // steps)
        if self._watch is not None and plan.slices:
            sizes = len(plan.slices), plan.num_tokens
            self._watch(StepRecord(plan.lane, *sizes, elapsed // steps, steps))

    def _step(self, run: _Run) -> None:
        """Compute the slices that are next and write what follows from them."""
        run.steps += 1
        results, run.parts = self._compute(run.plan.lane, run.parts), ()
        for part, result in results:
            job = self._jobs.get(part.name)
            # One that was cancelled meanwhile has no job, and the scheduler leaves it out.
            if job is None:
                continue
            try:
                if part.all_logits:
                    job.writer.read_prompt(part.begin, result)
            except Exception as error:
                self._fail_with(part.name, error)
                continue
            if part.chooses and result.dtype == np.int32:
                self._write(run, job, part, job.writer.accept_token, result[-1:].tolist())
            elif part.chooses:
                self._write(run, job, part, job.writer.accept, result[-1:])

    def _step_on(self, run: _Run) -> None:
        """One more step, or as many as may pass before something is told, if the engine can go on
        by itself.
        """
        steps = run.steps_within(self._outbox.nanoseconds_left)
        jobs = [self._jobs.get(part.name) for part in run.parts]
        samplers = [job.writer.sampler if job else None for job in jobs]
        if steps == 1 or None in samplers:
            self._step(run)
            return
        greedy = all(job and job.writer.is_plain_greedy for job in jobs)
        ends = frozenset[int]().union(*(job.writer.end_ids for job in jobs if job))
        caches = [self._caches[part.cache] for part in run.parts]
        tokens = [part.tokens[0] for part in run.parts]
        engine = self._engines[run.plan.lane]
        try:
            chosen = engine.continue_texts(
                caches,
                tokens,
                steps,
                samplers=None if greedy else samplers,
                ends=ends,
                interrupt=self._interrupt,
            )
        except Exception:
            # Nothing has come of it; one by one it is seen whose fault it is.
            self._step(run)
            return
        run.steps += len(chosen)
        parts, run.parts = run.parts, ()
        for part, job, column in zip(parts, jobs, chosen.T.tolist(), strict=True):
            if job is not None and part.name in self._jobs:
                self._write(run, job, part, job.writer.accept_token, column)

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

    def _compute(self, lane: str, slices: Iterable[Slice]) -> list[tuple[Slice, Any]]:
        """Logits or the likeliest tokens of each slice that could be computed."""
        parts = [part for part in slices if self._is_ready(part)]
        if not parts:
            return []
        engine = self._engines[lane]
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

    def _write(
        self, run: _Run, job: Job, part: Slice, write: Callable[[Any], Emission], results: Any
    ) -> None:
        """Write a token for each result, until the text ends or goes wrong."""
        chosen = run.chosen[part.name]
        for result in results:
            try:
                emission = write(result)
            except Exception as error:
                self._fail_with(part.name, error)
                return
            is_first = not job.has_written
            if is_first:
                job.has_written = True
                with self._changed:
                    emission.reused_tokens = self.scheduler.reused_tokens(part.name)
                    emission.admitted = self.scheduler.admitted(part.name)
            is_last = emission.finish_reason is not None
            self._outbox.put(job, emission, urgent=is_first or is_last)
            chosen.append(emission.token)
            if is_last:
                run.finished.add(part.name)
                return
        run.parts += (part.next(chosen[-1], len(results)),)

    def _fail_with(self, name: str, error: Exception) -> None:
        kind = "request" if isinstance(error, GenerationError) else "server"
        said = str(error) if isinstance(error, PliantError) else f"{type(error).__name__}: {error}"
        self._fail(name, kind, said)

    def _fail(self, name: str, kind: str, message: str) -> None:
        with self._changed:
            self.scheduler.fail(name)
            job = self._jobs.pop(name, None)
        if job is not None:
            self._outbox.put(job, Failure(kind, message), urgent=True)

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
