"""The cache as an axis of a search: the same cuts with keys and values in fewer bits."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from pliant.bits.cache import CacheFormat
from pliant.search.candidate import Candidate
from pliant.search.frontier import frontier
from pliant.sensitivities import Sensitivities
from pliant.subnet import Subnet

#: Bits that a search tries beside 16, where their loss was measured.
FEWER_CACHE_BITS = (8, 4, 3, 2)
#: What the cache of a subnet takes in a format, in bytes.
CacheBytes = Callable[[Subnet, CacheFormat], int]


def in_caches(
    found: Sequence[Candidate],
    caches: Sequence[CacheFormat],
    sensitivities: Sensitivities,
    cache_bytes: CacheBytes,
) -> list[Candidate]:
    """The candidates that are worth having in each of `caches`, of `found` in one other.

    A cache of fewer bits takes bytes from each shape by its groups and adds the same loss to all.
    So what nothing else of that cache beats is enough: whatever budget there is, its best is among
    them. The dense shape has a frontier of its own, since it is the baseline of every budget.
    Shapes that would not get smaller, behind a short context, are left out.
    """
    dense = [item for item in found if item.is_dense]
    changed: list[Candidate] = []
    for cache in caches:
        kept = _frontier_in(cache, found, cache_bytes) + _frontier_in(cache, dense, cache_bytes)
        changed += [
            msgspec.structs.replace(
                item,
                address=msgspec.structs.replace(item.address, cache_bits=cache.bits),
                subnet=item.subnet.with_cache(cache.bits, cache.window),
                predicted_loss=item.predicted_loss + sensitivities.cache_increase(cache.bits),
                memory_bytes=_bytes_in(cache, item, cache_bytes),
            )
            for item in dict.fromkeys(kept)
        ]
    return changed


def _frontier_in(
    cache: CacheFormat, found: Sequence[Candidate], cache_bytes: CacheBytes
) -> list[Candidate]:
    smaller = [item for item in found if _bytes_in(cache, item, cache_bytes) < item.memory_bytes]
    return frontier(
        smaller,
        lambda item: _bytes_in(cache, item, cache_bytes),
        lambda item: item.predicted_loss,
    )


def _bytes_in(cache: CacheFormat, item: Candidate, cache_bytes: CacheBytes) -> int:
    """The memory of a candidate with its cache held in another format."""
    held = cache_bytes(item.subnet, item.subnet.bits.cache)
    return item.memory_bytes - held + cache_bytes(item.subnet, cache)
