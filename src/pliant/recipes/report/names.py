"""Names of subnets that were measured or foreseen: saved ones, addresses, or words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from pliant.bits import BitPlan
from pliant.bits.cache import CacheFormat
from pliant.shape import SubnetShape
from pliant.subnet import CutAddress, Subnet


@dataclass(frozen=True)
class CutNames:
    """Names of saved cuts, and the depth and width of shapes that addresses can say."""

    saved: Mapping[Subnet, str]
    shapes: Mapping[SubnetShape, tuple[int, float]]

    def of(self, subnet: Subnet) -> str:
        """The saved name, the address, or a description that says what it keeps."""
        if subnet in self.saved:
            return self.saved[subnet]
        if subnet.shape in self.shapes and _is_plain(subnet.bits):
            return address(subnet, *self.shapes[subnet.shape])
        planes = [count for one in subnet.bits.blocks for count in msgspec.structs.astuple(one)]
        low, high = min(planes), max(planes)
        of_blocks = f"{low}" if low == high else f"{low} to {high}"
        cache = subnet.bits.cache
        held = "" if cache == CacheFormat() else f", cache {cache}"
        return f"{len(subnet.shape.blocks)} blocks, {of_blocks} planes{held}"


def address(subnet: Subnet, depth: int, width: float) -> str:
    """The address of a subnet of one number of planes; depth is left out where all blocks stay."""
    planes, vocabulary = subnet.bits.blocks[0].q, subnet.bits.embedding
    is_default = vocabulary == BitPlan.uniform(1, planes).embedding
    return str(
        CutAddress(
            None if depth == subnet.spec.num_blocks else depth,
            width,
            planes,
            None if is_default else vocabulary,
            cache_bits=None if subnet.bits.cache == CacheFormat() else subnet.bits.cache.bits,
        )
    )


def is_mixed(subnet: Subnet) -> bool:
    """Whether matrices of blocks read different numbers of planes."""
    found = {count for block in subnet.bits.blocks for count in msgspec.structs.astuple(block)}
    return len(found) > 1


def _is_plain(bits: BitPlan) -> bool:
    """Whether an address can say this plan: one number for blocks, one for the vocabulary, and a
    cache with the usual window."""
    blocks = {count for block in bits.blocks for count in msgspec.structs.astuple(block)}
    is_usual = bits.cache == CacheFormat(bits=bits.cache.bits)
    return len(blocks) == 1 and bits.embedding == bits.head and is_usual
