"""Carries out plans on lists of tokens in place of caches, and checks every promise on the way."""

from __future__ import annotations

from pliant.serve.scheduling import (
    Copy,
    Drop,
    Limits,
    Make,
    Plan,
    Scheduler,
    Slice,
    Take,
    TooBusyError,
    Work,
)

ENTRY_BYTES = {"large": 8, "small": 5}
CONTEXT = 96


def next_token(tokens: tuple[int, ...]) -> int:
    """Depends on every token before it, so that a wrong cache shows."""
    return hash(tokens) % 7


def expected(work: Work) -> list[int]:
    """What an idle scheduler would write for a work."""
    tokens = list(work.prompt)
    while len(tokens) - len(work.prompt) < work.max_tokens and len(tokens) <= CONTEXT:
        tokens.append(next_token(tuple(tokens)))
        if tokens[-1] == 0:
            break
    return tokens[len(work.prompt) :]


class Simulation:
    """A scheduler with two lanes whose clock is the tokens computed."""

    def __init__(self, limits: Limits) -> None:
        self.scheduler = Scheduler(limits)
        for lane, entry_bytes in ENTRY_BYTES.items():
            self.scheduler.add_lane(lane, entry_bytes, CONTEXT)
        self.caches: dict[int, tuple[int, list[int]]] = {}
        self.lane_of: dict[int, str] = {}
        self.works: dict[str, Work] = {}
        self.written: dict[str, list[int]] = {}
        self.finished: set[str] = set()
        self.gone: set[str] = set()
        self.served: dict[str, int] = {}
        self.rows: dict[str, int] = {}
        self.clock = 0
        self.most_bytes = 0

    def submit(self, work: Work) -> bool:
        try:
            self.scheduler.submit(work)
        except TooBusyError as error:
            assert 1 <= error.retry_after <= 60
            return False
        self.works[work.name], self.written[work.name] = work, []
        return True

    def cancel(self, name: str) -> None:
        alive = name in self.works and name not in self.finished | self.gone
        assert self.scheduler.cancel(name) == alive
        if alive:
            self.gone.add(name)

    def fail(self, name: str) -> None:
        self.scheduler.fail(name)
        if name not in self.finished:
            self.gone.add(name)

    def step(self, during: tuple[str, ...] = (), most_steps: int = 1) -> Plan:
        """One plan, at most so many steps of it; works named in `during` are cancelled in the last
        of them."""
        plan = self.scheduler.plan(self.clock)
        self.gone.update(plan.expired)
        for move in plan.moves:
            self._move(move)
        assert plan.num_tokens <= self.scheduler.limits.max_step_tokens
        assert len({part.cache for part in plan.slices}) == len(plan.slices)
        chosen: dict[str, list[int]] = {part.name: [] for part in plan.slices}
        done: set[str] = set()
        parts, steps = plan.slices, 0
        while parts and not done and steps < min(plan.steps, most_steps):
            parts, steps = self._step(plan.lane, parts, chosen, done), steps + 1
        for name in during:
            self.cancel(name)
            # What came out last may have been for nobody already.
            if chosen.get(name) and name not in done and self.clock % 2:
                chosen[name].pop()
        steps = max(steps, 1)
        took = (10 + plan.num_tokens) * steps
        self.clock += took
        self.scheduler.complete(plan, chosen, done, took * 1_000_000, steps)
        self.finished |= done - self.gone
        return plan

    def _step(
        self, lane: str, parts: tuple[Slice, ...], chosen: dict[str, list[int]], done: set[str]
    ) -> tuple[Slice, ...]:
        """One step of a plan; the slices of the next."""
        following = []
        for part in parts:
            token = self._compute(lane, part)
            if token is not None:
                if self._ends(part.name, token):
                    done.add(part.name)
                chosen[part.name].append(token)
                self.written[part.name].append(token)
                following.append(part.next(token))
        return tuple(following)

    def drain(self, most_plans: int = 20_000) -> None:
        for _ in range(most_plans):
            if not self.scheduler.has_work:
                break
            self.step(most_steps=9)
        assert not self.scheduler.has_work, "somebody starves"
        assert self.scheduler.num_running == self.scheduler.num_waiting == 0

    def check_all(self) -> None:
        """Nothing is lost, nothing is wrong, nothing leaks."""
        assert set(self.works) == self.finished | self.gone
        for name in self.finished - self.gone:
            assert self.written[name] == expected(self.works[name]), name
        pool = self.scheduler.pool
        assert pool.used_bytes == pool.stored_bytes == self._used_bytes()
        for lane in ENTRY_BYTES:
            self.scheduler.remove_lane(lane)
        self.step()
        assert pool.used_bytes == 0
        assert not self.caches

    def _used_bytes(self) -> int:
        return sum(
            capacity * ENTRY_BYTES[self.lane_of[cache]]
            for cache, (capacity, _) in self.caches.items()
        )

    def _move(self, move: Make | Copy | Take | Drop) -> None:
        match move:
            case Make(cache, lane, capacity):
                assert cache not in self.caches
                self.caches[cache] = (capacity, [])
                self.lane_of[cache] = lane
            case Copy(cache, source, length, capacity):
                assert cache not in self.caches
                assert length <= min(capacity, len(self.caches[source][1]))
                self.caches[cache] = (capacity, self.caches[source][1][:length])
                self.lane_of[cache] = self.lane_of[source]
            case Take(cache, length):
                del self.caches[cache][1][length:]
            case Drop(cache):
                del self.caches[cache]
        if isinstance(move, Make | Copy):
            assert move.capacity <= CONTEXT
        self.most_bytes = max(self.most_bytes, self._used_bytes())
        assert self._used_bytes() <= self.scheduler.limits.cache_bytes, "the budget is passed"

    def _compute(self, lane: str, part: Slice) -> int | None:
        work = self.works[part.name]
        capacity, held = self.caches[part.cache]
        assert work.lane == lane == self.lane_of[part.cache]
        known = [*work.prompt, *self.written[part.name]]
        # A cancelled sequence may have left more in the cache than the scheduler counts on.
        assert held[: part.begin] == known[: part.begin], "a cache of somebody else"
        assert len(held) == part.begin
        assert list(part.tokens) == known[part.begin : part.end]
        held += part.tokens
        assert len(held) <= capacity
        self.served[work.client] = self.served.get(work.client, 0) + len(part.tokens)
        if part.all_logits:
            assert work.prompt_logits
            self.rows[part.name] = self.rows.get(part.name, 0) + len(part.tokens)
        assert part.chooses == (part.end == len(known))
        return next_token(tuple(known)) if part.chooses else None

    def _ends(self, name: str, token: int) -> bool:
        work, count = self.works[name], len(self.written[name]) + 1
        full = len(work.prompt) + count > CONTEXT
        return token == 0 or count >= work.max_tokens or full
