"""`FairQueue`: who is served next, so that no client can crowd out another.

Virtual token counters (Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024, arXiv
2401.00588): each client has a counter of the work done for it, and the one with the least is next.
A client that comes back starts no lower than the least of those present, so that it cannot save up
service by being away.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")

#: Work of one token: written ones cost a whole pass over the weights, those of a prompt share one.
PROMPT_TOKEN_COST = 1
WRITTEN_TOKEN_COST = 2
#: Absent clients whose counters are remembered.
_MAX_ABSENT = 10_000


class FairQueue(Generic[Item]):
    """Queues of clients: first come, first served within one, least served first among them."""

    def __init__(self) -> None:
        self._waiting: dict[str, deque[Item]] = {}
        self._counters: dict[str, int] = {}
        self._absent: OrderedDict[str, int] = OrderedDict()
        #: Items of each client that have come and not left, waiting or not.
        self._present: dict[str, int] = {}

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def __iter__(self) -> Iterator[Item]:
        for queue in self._waiting.values():
            yield from queue

    def waiting(self, client: str) -> int:
        """Items of a client that wait."""
        return len(self._waiting.get(client, ()))

    def counter(self, client: str) -> int:
        """Work done for a client that is present."""
        return self._counters[client]

    def enter(self, client: str, item: Item) -> None:
        """A new item at the end of its client's queue."""
        if client not in self._present:
            lowest = min(self._counters.values(), default=0)
            self._counters[client] = max(self._absent.pop(client, 0), lowest)
        self._present[client] = self._present.get(client, 0) + 1
        self._waiting.setdefault(client, deque()).append(item)

    def leave(self, client: str) -> None:
        """One item of a client, which does not wait, is done with."""
        self._present[client] -= 1
        if not self._present[client]:
            del self._present[client]
            self._absent[client] = self._counters.pop(client)
            if len(self._absent) > _MAX_ABSENT:
                self._absent.popitem(last=False)

    def put_back(self, client: str, item: Item) -> None:
        """An item that was popped waits again, as the first of its client."""
        self._waiting.setdefault(client, deque()).appendleft(item)

    def next(self, ready: Callable[[Item], bool]) -> Item | None:
        """The item to serve now: the first of the least served client whose first is ready."""
        heads = [(self._counters[client], client) for client in self._waiting]
        for _, client in sorted(heads):
            if ready(self._waiting[client][0]):
                return self._waiting[client][0]
        return None

    def remove(self, client: str, item: Item) -> None:
        """Take an item out of the queue; it stays present until `leave`."""
        queue = self._waiting[client]
        queue.remove(item)
        if not queue:
            del self._waiting[client]

    def charge(self, client: str, cost: int) -> None:
        """Count work done for a client that is present."""
        self._counters[client] += cost
