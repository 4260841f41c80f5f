"""`Room`: finds the bytes a sequence needs, by eviction, by growth, by pre-emption."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain

from pliant.serve.scheduling.pool import CachePool, Holding
from pliant.serve.scheduling.sequence import Sequence
from pliant.serve.scheduling.work import CacheMove, Copy, Counts, Drop, Make, Take

#: Tokens a new cache has room for behind what is to be computed, before it first grows.
_HEADROOM_TOKENS = 64


class Room:
    """Gives sequences their caches and takes them away; every change is a `CacheMove` in `moves`.

    Moves are listed in the order in which they keep the budget, so whoever carries them out in
    that order keeps it too.
    """

    def __init__(self, pool: CachePool, counts: Counts) -> None:
        self._pool, self._counts = pool, counts
        self.moves: list[CacheMove] = []

    def start(self, sequence: Sequence) -> bool:
        """Give a waiting sequence a cache for all its tokens and some more; False if none fits."""
        wished = min(sequence.bound, len(sequence.tokens) + _HEADROOM_TOKENS)
        capacity = self._pool.capacity_for(sequence.lane, wished)
        reused = self._reuse(sequence, capacity)
        if not reused and not self._make(sequence, capacity):
            return False
        if sequence.reused is None:
            sequence.reused = reused
            self._counts.reused_tokens += reused
            self._counts.prefix_hits += reused > 0
        sequence.charged = max(sequence.charged, reused)
        return True

    def grow(self, sequence: Sequence, younger: Callable[[], Iterable[Sequence]]) -> bool:
        """Make room for one more token; False where the sequence itself had to be pre-empted.

        `younger` gives the running sequences that came later, the latest first; they give way.
        """
        holding = sequence.holding
        assert holding is not None
        if sequence.computed < holding.capacity:
            return True
        least = self._pool.capacity_for(sequence.lane, sequence.computed + 1)
        ample = min(sequence.bound, holding.capacity * 3 // 2)
        if self._move_to(sequence, max(least, self._pool.capacity_for(sequence.lane, ample))):
            return True
        for victim in chain((None,), younger()):
            if victim is not None:
                self.preempt(victim)
            if self._move_to(sequence, least):
                return True
        if self._compute_again(sequence, least):
            return True
        self.preempt(sequence)
        return False

    def preempt(self, sequence: Sequence) -> None:
        """Take the cache of a running sequence; its tokens are computed again later.

        The cache is kept for its prefix until the bytes are needed, so if they are not, nothing
        is lost.
        """
        self._counts.preemptions += 1
        self.store(sequence)

    def store(self, sequence: Sequence) -> None:
        """Keep the cache of a sequence for its prefix."""
        if sequence.holding is not None:
            self._pool.store(sequence.holding)
            sequence.holding = None

    def drop(self, sequence: Sequence) -> None:
        """Give the cache of a sequence back at once."""
        if sequence.holding is not None:
            self._drop(sequence.holding)
            sequence.holding = None

    def _drop(self, holding: Holding) -> None:
        self._pool.drop(holding)
        self.moves.append(Drop(holding.cache))

    def _evict_for(self, num_bytes: int, kept: Holding | None = None) -> bool:
        """Whether `num_bytes` are free, after stored caches were dropped if that helps."""
        self._counts.evictions += self._pool.evict_for(
            num_bytes, kept, lambda cache: self.moves.append(Drop(cache))
        )
        return self._pool.free_bytes >= num_bytes

    def _make(self, sequence: Sequence, capacity: int) -> bool:
        if not self._evict_for(sequence.lane.caches.num_bytes(capacity)):
            return False
        sequence.holding = self._pool.make(sequence.lane, capacity, sequence.work.salt)
        self.moves.append(Make(sequence.holding.cache, sequence.lane.name, capacity))
        return True

    def _reuse(self, sequence: Sequence, capacity: int) -> int:
        """Start from a cache with the same beginning; the tokens shared, 0 where there is none."""
        if sequence.work.prompt_logits:
            return 0
        found = self._pool.match(sequence.lane, sequence.work.salt, sequence.tokens)
        if found is None:
            return 0
        source, length = found
        superseded = not source.in_use and length == len(source.tokens)
        if superseded and source.capacity >= capacity:
            self._pool.take(source, length)
            self.moves.append(Take(source.cache, length))
            sequence.holding = source
        elif self._evict_for(sequence.lane.caches.num_bytes(capacity), kept=source):
            self._copy(sequence, source, length, capacity)
            if superseded:
                self._drop(source)
        elif not source.in_use and source.capacity >= min(sequence.bound, len(sequence.tokens)):
            self._pool.take(source, length)
            self.moves.append(Take(source.cache, length))
            sequence.holding = source
        else:
            return 0
        return length

    def _copy(self, sequence: Sequence, source: Holding, length: int, capacity: int) -> None:
        holding = self._pool.make(sequence.lane, capacity, sequence.work.salt)
        self.moves.append(Copy(holding.cache, source.cache, length, capacity))
        self._pool.grow_tokens(holding, tuple(source.tokens[:length]))
        holding.longest = source.longest
        sequence.holding = holding

    def _move_to(self, sequence: Sequence, capacity: int) -> bool:
        """A larger cache with the same tokens, where both fit beside each other for a moment."""
        old = sequence.holding
        assert old is not None
        if not self._evict_for(sequence.lane.caches.num_bytes(capacity)):
            return False
        self._copy(sequence, old, len(old.tokens), capacity)
        self._drop(old)
        return True

    def _compute_again(self, sequence: Sequence, capacity: int) -> bool:
        """A larger cache in the place of the old one, whose tokens are computed once more."""
        assert sequence.holding is not None
        own, needed = sequence.holding.num_bytes, sequence.lane.caches.num_bytes(capacity)
        if self._pool.free_bytes + self._pool.stored_bytes + own < needed:
            return False
        self._counts.preemptions += 1
        self.drop(sequence)
        return self._make(sequence, capacity)
