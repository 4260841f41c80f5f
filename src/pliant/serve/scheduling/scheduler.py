"""`Scheduler`: which tokens of which sequences the next step computes.

Continuous batching (Orca, OSDI 2022): sequences come and go between steps. A step holds one token
of every sequence that is decoding and, up to what fits into the step's time, chunks of prompts
(Sarathi-Serve, arXiv 2403.02310), so a long prompt never stalls the others.

Nothing here knows a model, a clock or a thread: `plan` says what to do, the caller does it and
tells `complete` what came out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from pliant.errors import GenerationError, UsageError
from pliant.serve.scheduling.fairness import PROMPT_TOKEN_COST, WRITTEN_TOKEN_COST, FairQueue
from pliant.serve.scheduling.pace import StepPace
from pliant.serve.scheduling.pool import CachePool, CacheRules, Lane, PlainCaches
from pliant.serve.scheduling.room import Room
from pliant.serve.scheduling.sequence import Sequence
from pliant.serve.scheduling.work import Counts, Drop, Limits, Plan, Slice, TooBusyError, Work

#: Seconds that a refused client is asked to wait at most.
_MAX_RETRY_SECONDS = 60


class Scheduler:
    """Works of several clients on several lanes, under the bounds of `Limits`.

    What it promises, whatever comes (property tests hold it to that): caches never pass the
    budget; a cache has one user; every work that was accepted and not cancelled is finished; of
    running sequences the one that came first always advances; the client served least is next.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.counts = Counts()
        self.pool = CachePool(limits.cache_bytes, limits.page_tokens)
        self._room = Room(self.pool, self.counts)
        self._lanes: dict[str, Lane] = {}
        self._paces: dict[str, StepPace] = {}
        self._turns: set[str] = set()
        self._queue: FairQueue[Sequence] = FairQueue()
        self._running: dict[str, Sequence] = {}
        self._sequences: dict[str, Sequence] = {}
        #: After a pre-emption nobody starts until somebody has left: no two take turns for ever.
        self._admits = True
        #: Works whose tokens are being computed now, and those of them nobody wants any more.
        self._in_flight: set[str] = set()
        self._unwanted: set[str] = set()
        self._arrivals = 0
        self._finished = 0
        self._busy_nanoseconds = 0

    @property
    def num_waiting(self) -> int:
        """Works that have no cache yet, or had to give theirs up."""
        return len(self._queue)

    @property
    def num_running(self) -> int:
        """Works that have a cache."""
        return len(self._running)

    @property
    def has_work(self) -> bool:
        """Whether `plan` has anything to say."""
        return bool(self._running or self._room.moves or self.num_waiting)

    def running_on(self, lane: str) -> int:
        """Works of one lane, waiting or running."""
        return sum(sequence.lane.name == lane for sequence in self._sequences.values())

    def add_lane(self, name: str, caches: CacheRules | int, max_context: int) -> None:
        """A subnet that reads `max_context` tokens, whose caches follow rules or take so many bytes
        a token."""
        if name in self._lanes:
            raise UsageError(f"There is a lane {name!r} already.")
        self._lanes[name] = Lane(
            name, PlainCaches(caches) if isinstance(caches, int) else caches, max_context
        )
        limits = self.limits
        self._paces[name] = StepPace(
            limits.step_nanoseconds, limits.min_prefill_tokens, limits.max_step_tokens
        )

    def remove_lane(self, name: str) -> None:
        """Forget an idle lane and what was kept of it; `UsageError` while a work is on it."""
        if self.running_on(name):
            raise UsageError(f"The subnet {name!r} is in use; close it when it is idle.")
        self._room.moves += map(Drop, self.pool.forget_lane(self._lanes[name]))
        del self._lanes[name], self._paces[name]

    def max_tokens(self, lane: str) -> int:
        """Most tokens of one sequence of a lane: its context, or the pages the budget holds."""
        return self.pool.most_tokens(self._lanes[lane])

    def submit(self, work: Work) -> None:
        """Accept a work. Nothing is accepted that could not be finished.

        Raises `TooBusyError` where too many are waiting, and `GenerationError` where the prompt and
        what may be written do not fit into the context or the budget of caches.
        """
        lane = self._lanes[work.lane]
        sequence = Sequence(work, lane, self._arrivals)
        self._check(sequence)
        waiting, own = self.num_waiting, self._queue.waiting(work.client)
        limits = self.limits
        if waiting >= limits.max_waiting or own >= limits.max_waiting_per_client:
            self.counts.refused += 1
            raise TooBusyError(
                f"{waiting} requests are waiting, {own} of them yours; the limits are "
                f"{limits.max_waiting} and {limits.max_waiting_per_client}. Try again later.",
                self.retry_after(),
            )
        self._arrivals += 1
        self._sequences[work.name] = sequence
        self._queue.enter(work.client, sequence)

    def retry_after(self) -> int:
        """Seconds until about as many works are finished as are waiting now, 1 to 60."""
        each = self._busy_nanoseconds / max(self._finished, 1)
        return int(min(max(self.num_waiting * each / 1e9, 1), _MAX_RETRY_SECONDS))

    def reused_tokens(self, name: str) -> int:
        """Tokens of the prompt of a work that came from a kept prefix."""
        sequence = self._sequences.get(name)
        return (sequence.reused or 0) if sequence else 0

    def admitted(self, name: str) -> int:
        """When a work first got a cache, in nanoseconds of the clock of `plan`; 0 before that."""
        sequence = self._sequences.get(name)
        return sequence.admitted if sequence else 0

    def cancel(self, name: str) -> bool:
        """A work is no longer wanted; whether it was still there. What it computed is kept.

        One whose step is being computed leaves with `complete`.
        """
        sequence = self._sequences.get(name)
        if sequence is None or name in self._unwanted:
            return False
        if name in self._in_flight:
            self._unwanted.add(name)
            return True
        self._room.store(sequence)
        self._forget(sequence)
        return True

    def fail(self, name: str) -> None:
        """A work went wrong, and so perhaps its cache, which is dropped."""
        sequence = self._sequences.get(name)
        if sequence is not None:
            self._room.drop(sequence)
            self._forget(sequence)
            self._unwanted.discard(name)

    def plan(self, now: int) -> Plan:
        """The next step at `now` nanoseconds. Call `complete` before the next `plan`."""
        expired = self._expire(now)
        self._admit(now)
        lane = self._next_lane()
        slices = self._slices(lane) if lane else ()
        moves, self._room.moves = tuple(self._room.moves), []
        self._in_flight = {part.name for part in slices}
        steps = self._steps(lane, slices) if lane else 1
        return Plan(
            lane=lane.name if lane else "",
            moves=moves,
            slices=slices,
            expired=expired,
            steps=steps,
        )

    def complete(
        self,
        plan: Plan,
        chosen: Mapping[str, Iterable[int]],
        finished: Collection[str],
        nanoseconds: int,
        steps: int = 1,
    ) -> None:
        """The first `steps` of a plan were carried out in `nanoseconds`.

        `chosen` has the tokens of each slice that `chooses`, one of each step or fewer: a work may
        have been cancelled or at its end before the last. Those in `finished` write no more. Works
        that failed meanwhile are passed over.
        """
        for part in plan.slices:
            sequence = self._sequences.get(part.name)
            if sequence is not None:
                tokens = tuple(chosen.get(part.name, ()))
                self._advance(sequence, part, steps, tokens, part.name in finished)
        self._in_flight.clear()
        self._unwanted.clear()
        if plan.slices:
            self.counts.steps += steps
            self._busy_nanoseconds += nanoseconds
            self._lanes[plan.lane].service += nanoseconds
            self._paces[plan.lane].observe(plan.num_tokens, nanoseconds // steps)

    def _check(self, sequence: Sequence) -> None:
        work, lane = sequence.work, sequence.lane
        if work.name in self._sequences:
            raise UsageError(f"There is a work {work.name!r} already.")
        if not work.prompt or work.max_tokens < 1:
            raise GenerationError("A work has at least one token of prompt and one to write.")
        most = lane.max_context
        if len(work.prompt) > most:
            raise GenerationError(
                f"The prompt has {len(work.prompt)} tokens and the model's context is {most}; "
                f"shorten the prompt by {len(work.prompt) - most} tokens."
            )
        capacity = self.pool.capacity_for(lane, sequence.bound)
        needed = lane.caches.num_bytes(capacity)
        if needed > self.limits.cache_bytes:
            most = self.pool.most_tokens(lane)
            raise GenerationError(
                f"The prompt of {len(work.prompt)} tokens and up to {work.max_tokens} more take "
                f"{needed} bytes of cache and {self.limits.cache_bytes} are "
                f"granted, enough for {most} tokens; ask for fewer."
            )

    def _forget(self, sequence: Sequence) -> None:
        """A work is gone, waiting or running."""
        name, client = sequence.work.name, sequence.work.client
        if self._running.pop(name, None) is None:
            self._queue.remove(client, sequence)
        self._queue.leave(client)
        self._admits = True
        del self._sequences[name]

    def _expire(self, now: int) -> tuple[str, ...]:
        late = [
            name
            for name, sequence in self._sequences.items()
            if sequence.work.deadline is not None and sequence.work.deadline <= now
        ]
        for name in late:
            self.cancel(name)
        self.counts.expired += len(late)
        return tuple(late)

    def _admit(self, now: int) -> None:
        """Start waiting sequences. The next in line is never passed over for a smaller one."""
        while self.num_running < self.limits.max_sequences:
            if not self._admits and self._running:
                return
            sequence = self._queue.next(self._is_ready)
            if sequence is None or not self._room.start(sequence):
                return
            self._queue.remove(sequence.work.client, sequence)
            self._running[sequence.work.name] = sequence
            sequence.admitted = sequence.admitted or now

    def _is_ready(self, sequence: Sequence) -> bool:
        """Whether the prompt it shares with its leader is computed, or will not be."""
        leader = self._sequences.get(sequence.work.leader or "")
        return leader is None or leader.written > 0

    def _next_lane(self) -> Lane | None:
        """The lane with work that had the least time; one that comes back does not catch up."""
        busy = {sequence.lane.name for sequence in self._running.values()}
        if len(busy) == 1 and busy == self._turns:
            return self._lanes[next(iter(busy))]
        lowest = min((self._lanes[name].service for name in busy & self._turns), default=0)
        for name in busy - self._turns:
            self._lanes[name].service = max(self._lanes[name].service, lowest)
        self._turns = busy
        lanes = (self._lanes[name] for name in busy)
        return min(lanes, key=lambda it: (it.service, it.name), default=None)

    def _slices(self, lane: Lane) -> tuple[Slice, ...]:
        """One token of each that decodes, then parts of prompts within the pace of the lane."""
        slices = [
            sequence.slice(1)
            for sequence in sorted(self._running.values(), key=lambda it: it.order)
            if self._decodes(sequence, lane) and self._grow(sequence) and sequence.pending == 1
        ]
        prefilling = self._prefilling(lane)
        if not prefilling:
            return tuple(slices)
        limits = self.limits
        left = max(self._paces[lane.name].tokens() - len(slices), limits.min_prefill_tokens)
        left = min(left, limits.max_step_tokens - len(slices))
        rows = limits.max_logit_rows
        for sequence in prefilling:
            count = min(sequence.pending, left)
            if sequence.work.prompt_logits:
                count = min(count, rows)
                rows -= count
            if count > 0:
                left -= count
                slices.append(sequence.slice(count))
        return tuple(slices)

    def _steps(self, lane: Lane, slices: tuple[Slice, ...]) -> int:
        """Steps that would be planned alike, one after the other, if nothing else happened.

        Whoever waits now waits for somebody to leave. Prompts and other lanes get their turn after
        each step; growing a cache needs a plan, and a clock is looked at after a step's time.
        """
        running = [self._running[part.name] for part in slices]
        if len(running) < len(self._running) or any(it.pending > 1 for it in running):
            return 1
        if any(part.all_logits for part in slices):
            return 1
        room = min((it.steps_left for it in running), default=1)
        each = self._paces[lane.name].nanoseconds(len(slices))
        return min(room, max(int(self.limits.step_nanoseconds / each), 1)) if each else 1

    def _decodes(self, sequence: Sequence, lane: Lane) -> bool:
        # Asked anew for each: those before it may have taken its cache.
        running = sequence.work.name in self._running
        return running and sequence.lane is lane and sequence.pending == 1

    def _prefilling(self, lane: Lane) -> list[Sequence]:
        """Sequences with more than one token to compute, of the least served client first."""
        found = [it for it in self._running.values() if it.lane is lane and it.pending > 1]
        return sorted(found, key=lambda it: (self._queue.counter(it.work.client), it.order))

    def _grow(self, sequence: Sequence) -> bool:
        """Room for one more token; False where the sequence went back to wait."""

        def younger() -> Iterable[Sequence]:
            later = [it for it in self._running.values() if it.order > sequence.order]
            for victim in sorted(later, key=lambda it: -it.order):
                self._wait_again(victim)
                yield victim

        if self._room.grow(sequence, younger):
            return True
        self._wait_again(sequence)
        return False

    def _wait_again(self, sequence: Sequence) -> None:
        self._admits = False
        del self._running[sequence.work.name]
        self._queue.put_back(sequence.work.client, sequence)

    def _advance(
        self,
        sequence: Sequence,
        part: Slice,
        steps: int,
        chosen: tuple[int, ...],
        finished: bool,
    ) -> None:
        """So many steps of a sequence were computed, and tokens chosen."""
        assert sequence.holding is not None
        computed = (*part.tokens, *chosen[: steps - 1])
        self._charge(sequence, len(computed))
        # The last steps may have computed what nobody wants any more.
        self.pool.grow_tokens(sequence.holding, computed, part.end + steps - 1)
        unwanted = sequence.work.name in self._unwanted
        if not unwanted:
            sequence.tokens += chosen
            self.counts.written_tokens += len(chosen)
        if finished or unwanted:
            self._finished += 1
            self._room.store(sequence)
            self._forget(sequence)
        else:
            assert sequence.written < sequence.work.max_tokens, "a work writes more than it may"

    def _charge(self, sequence: Sequence, count: int) -> None:
        """Put what of the next `count` tokens was computed for the first time on the client's
        account."""
        begin, end = sequence.computed, sequence.computed + count
        new = max(end - max(sequence.charged, begin), 0)
        self.counts.recomputed_tokens += count - new
        if new:
            of_prompt = max(min(end, len(sequence.work.prompt)) - sequence.charged, 0)
            self.counts.prompt_tokens += of_prompt
            cost = of_prompt * PROMPT_TOKEN_COST + (new - of_prompt) * WRITTEN_TOKEN_COST
            self._queue.charge(sequence.work.client, cost)
            sequence.charged = end
