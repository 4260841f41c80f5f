"""`CachePool`: the bytes of all caches of all lanes, under one budget that is never passed.

A native cache is contiguous, so caches do not share memory page by page. What several sequences
have in common is copied, which costs a small part of computing it; a cache of a finished sequence
is kept for its prefix until its bytes are needed.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Protocol

from pliant.errors import UsageError
from pliant.serve.scheduling.prefixes import PrefixIndex


class CacheRules(Protocol):
    """What caches of a subnet take, and where they can be cut (`pliant.bits.cache`)."""

    def num_bytes(self, capacity: int) -> int:
        """Bytes of a cache for `capacity` tokens; more for more tokens."""

    def exact_length(self, length: int, longest: int) -> int:
        """Of `length` tokens of a cache that has held `longest`, those that can be used again."""


class PlainCaches:
    """Caches of so many bytes a token, which can be cut anywhere."""

    def __init__(self, entry_bytes: int) -> None:
        self._entry_bytes = entry_bytes

    def num_bytes(self, capacity: int) -> int:
        """Bytes of a cache for `capacity` tokens."""
        return self._entry_bytes * capacity

    def exact_length(self, length: int, longest: int) -> int:
        """All of them."""
        return length


class Lane:
    """One subnet: what its caches take and the longest sequence it reads."""

    def __init__(self, name: str, caches: CacheRules, max_context: int) -> None:
        self.name, self.caches, self.max_context = name, caches, max_context
        #: Nanoseconds of steps so far, by which lanes take turns.
        self.service = 0

    def most_tokens(self, budget_bytes: int) -> int:
        """The longest sequence whose cache a budget holds."""
        lengths = range(self.max_context + 1)
        return bisect_right(lengths, budget_bytes, key=self.caches.num_bytes) - 1


class Holding:
    """One cache: its bytes, the tokens computed into it, and whether a sequence is using it."""

    def __init__(self, cache: int, lane: Lane, capacity: int, salt: str) -> None:
        self.cache, self.lane, self.capacity, self.salt = cache, lane, capacity, salt
        self.tokens: list[int] = []
        #: The most tokens it has held, cut or not.
        self.longest = 0
        self.in_use = True

    @property
    def num_bytes(self) -> int:
        """Bytes reserved."""
        return self.lane.caches.num_bytes(self.capacity)

    def exact_length(self, length: int) -> int:
        """Of its first `length` tokens those that a sequence can start from."""
        return self.lane.caches.exact_length(length, self.longest)


class CachePool:
    """All holdings; those in use, and those stored for their prefixes, oldest use first."""

    def __init__(self, budget_bytes: int, page_tokens: int) -> None:
        self.budget_bytes = budget_bytes
        self._page_tokens = page_tokens
        self._in_use: dict[int, Holding] = {}
        self._stored: OrderedDict[int, Holding] = OrderedDict()
        self._index = PrefixIndex(page_tokens)
        self._next_cache = 0
        self.used_bytes = 0

    @property
    def free_bytes(self) -> int:
        """Bytes that no cache holds."""
        return self.budget_bytes - self.used_bytes

    @property
    def stored_bytes(self) -> int:
        """Bytes held only for prefixes."""
        return sum(holding.num_bytes for holding in self._stored.values())

    def __iter__(self) -> Iterator[Holding]:
        yield from self._in_use.values()
        yield from self._stored.values()

    def capacity_for(self, lane: Lane, tokens: int) -> int:
        """`tokens` rounded up to whole pages, within the lane's context."""
        pages = -(-tokens // self._page_tokens)
        return min(pages * self._page_tokens, lane.max_context)

    def most_tokens(self, lane: Lane) -> int:
        """The longest sequence that fits alone: the lane's context, or whole pages."""
        most = lane.most_tokens(self.budget_bytes)
        return most if most == lane.max_context else most - most % self._page_tokens

    def make(self, lane: Lane, capacity: int, salt: str) -> Holding:
        """A holding in use; the caller has made sure that it fits."""
        holding = Holding(self._next_cache, lane, capacity, salt)
        assert holding.num_bytes <= self.free_bytes, "the budget of caches would be passed"
        self._next_cache += 1
        self.used_bytes += holding.num_bytes
        self._in_use[holding.cache] = holding
        return holding

    def take(self, holding: Holding, length: int) -> None:
        """Use a stored holding on, cut to `length` tokens."""
        assert not holding.in_use, "a cache would be used twice"
        del self._stored[holding.cache]
        self._index.remove(holding)
        del holding.tokens[length:]
        holding.in_use = True
        self._in_use[holding.cache] = holding
        self._index.extend(holding)

    def store(self, holding: Holding) -> None:
        """Keep a holding whose sequence is done, for its prefix."""
        assert holding.in_use, "a cache would be stored twice"
        del self._in_use[holding.cache]
        holding.in_use = False
        self._stored[holding.cache] = holding

    def drop(self, holding: Holding) -> None:
        """Give the bytes of a holding back."""
        held = self._in_use if holding.in_use else self._stored
        del held[holding.cache]
        self._index.remove(holding)
        self.used_bytes -= holding.num_bytes

    def grow_tokens(self, holding: Holding, tokens: tuple[int, ...], longest: int = 0) -> None:
        """Note that `tokens` were appended to a holding, and more perhaps, up to `longest`."""
        holding.tokens += tokens
        holding.longest = max(holding.longest, len(holding.tokens), longest)
        assert len(holding.tokens) <= holding.capacity, "a cache would overflow"
        self._index.extend(holding)

    def evict_for(self, num_bytes: int, kept: Holding | None, drop: Callable[[int], None]) -> int:
        """Drop stored holdings, least recently used first, until `num_bytes` are free.

        `kept` stays. `drop` is told each cache. Nothing is dropped where that would not be enough.
        Returns the number dropped.
        """
        evictable = [holding for holding in self._stored.values() if holding is not kept]
        if self.free_bytes + sum(holding.num_bytes for holding in evictable) < num_bytes:
            return 0
        count = 0
        for holding in evictable:
            if self.free_bytes >= num_bytes:
                break
            self.drop(holding)
            drop(holding.cache)
            count += 1
        return count

    def match(self, lane: Lane, salt: str, tokens: list[int]) -> tuple[Holding, int] | None:
        """The holding that shares the longest prefix with `tokens`, and its length.

        At least a page, and never all of `tokens`: the last is computed for its logits.
        """
        found = self._index.match(lane.name, salt, tokens)
        if found is None:
            return None
        holding, length = found[0], found[0].exact_length(found[1])
        if not holding.in_use:
            self._stored.move_to_end(holding.cache)
        return (holding, length) if length else None

    def forget_lane(self, lane: Lane) -> list[int]:
        """Drop what is stored of a lane; the caches dropped. `UsageError` while one is in use."""
        if any(holding.lane is lane for holding in self._in_use.values()):
            raise UsageError(f"The subnet {lane.name!r} is running; close it when it is idle.")
        gone = [holding for holding in self._stored.values() if holding.lane is lane]
        for holding in gone:
            self.drop(holding)
        return [holding.cache for holding in gone]
