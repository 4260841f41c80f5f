"""The frontier: what nothing else beats in both bytes and loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

Item = TypeVar("Item")


def frontier(
    items: Iterable[Item], size: Callable[[Item], float], loss: Callable[[Item], float]
) -> list[Item]:
    """The items that no other dominates, ascending in size and strictly descending in loss.

    One item dominates another if it is no larger and no worse and better in one of them. Of items
    equal in both, the first is kept. Items whose loss is not finite are never on the frontier.
    """
    found: list[Item] = []
    lowest = float("inf")
    finite = [item for item in items if math.isfinite(loss(item))]
    for item in sorted(finite, key=lambda item: (size(item), loss(item))):
        # Ascending sizes: an item is not dominated just when its loss is a new minimum.
        if loss(item) < lowest:
            lowest = loss(item)
            found.append(item)
    return found


def spread(items: Sequence[Item], count: int) -> list[Item]:
    """At most `count` of `items` at even distances, the first and the last among them."""
    if len(items) <= count:
        return list(items)
    if count < 2:
        return list(items[-1:])[:count]
    last = len(items) - 1
    return [items[round(place * last / (count - 1))] for place in range(count)]
