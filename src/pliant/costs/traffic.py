"""Bytes that one decoded token moves, and the speed no engine can pass on a given bandwidth.

This is the roofline of decoding, where arithmetic is hidden behind memory; `costs/graph.py` has all
operators, and any step.
"""

from __future__ import annotations

import msgspec

from pliant.adapters import low_rank_bytes
from pliant.bits import plane_bytes, scale_bytes
from pliant.bits.cache import CacheFormat
from pliant.errors import UsageError
from pliant.subnet import Subnet


class TokenTraffic(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bytes read and written to decode one token of one sequence, by what they hold."""

    weight_bytes: int
    cache_bytes: int

    @property
    def total_bytes(self) -> int:
        """All bytes of one token."""
        return self.weight_bytes + self.cache_bytes


def decode_traffic(
    subnet: Subnet, context: int, cache: CacheFormat | None = None, rank: int = 0
) -> TokenTraffic:
    """Traffic of one token behind `context` ones, held as the bit plan or else `cache` says.

    Every kept matrix is read once, of the embedding only the token's own row; the cache is read
    over the part that each block's window shows and written by one entry. Adapters of `rank`, if
    there are some, count among the weights.
    """
    spec, cache = subnet.spec, cache or subnet.bits.cache
    weights = subnet.weight_bytes + (low_rank_bytes(spec, subnet.shape, rank) if rank else 0)
    rows, columns = spec.vocab_size, spec.hidden_size
    embedding = subnet.bits.embedding * plane_bytes(rows, columns) + scale_bytes(rows, columns)
    if not spec.tied_embeddings:
        weights += embedding // rows - embedding
    held = 0
    for groups, block in zip(subnet.shape.groups, subnet.shape.blocks, strict=True):
        window = spec.block_windows[block]
        seen = min(context, window) if window else context
        read = cache.read_bytes(spec.head_dim, context - seen, context)
        held += 2 * groups * (read + cache.row_bytes(spec.head_dim))
    return TokenTraffic(weight_bytes=weights, cache_bytes=held)


def tokens_per_second_bound(traffic: TokenTraffic, bytes_per_second: float) -> float:
    """Token/s at which `traffic` fills a read bandwidth of `bytes_per_second`."""
    if not bytes_per_second > 0:
        raise UsageError(f"A bandwidth is above 0 byte/s; {bytes_per_second} was given.")
    return bytes_per_second / traffic.total_bytes
