"""Shapes that are worse than smaller ones: not an error, but nobody should take them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from pliant.shape import SubnetShape
from pliant.tune.sandwich import NamedShape


def inversions(
    shapes: Sequence[NamedShape], losses: Mapping[str, float]
) -> Iterator[tuple[str, str]]:
    """Names `(larger, smaller)` of shapes where the smaller one has the lower loss.

    Larger is what has as many blocks and is nowhere narrower; of each such shape the best smaller
    one is named. Deeper and wider is not always better: depth choices need not be nested, and a
    shape that a tuning has hardly seen may lag behind.
    """
    for named in shapes:
        smaller = [
            other.name
            for other in shapes
            if _is_larger(named.shape, other.shape) and losses[other.name] < losses[named.name]
        ]
        if smaller:
            yield named.name, min(smaller, key=losses.__getitem__)


def _is_larger(shape: SubnetShape, other: SubnetShape) -> bool:
    at_least = (
        len(shape.blocks) >= len(other.blocks)
        and min(shape.groups) >= max(other.groups)
        and min(shape.neurons) >= max(other.neurons)
    )
    return at_least and shape != other
