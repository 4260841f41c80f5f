"""What becomes of a running engine's caches when it switches to another subnet."""

from __future__ import annotations

from typing import Literal

import msgspec

from pliant.subnet import MatrixCut, Subnet

#: What a switch may do with cached entries: keep them wherever the blocks and groups allow it, or
#: only where the new subnet would have computed the same ones.
Entries = Literal["keep", "exact"]
#: What it did: entries as the new subnet computes them, entries of the subnet before, or new ones.
Outcome = Literal["same", "kept", "rebuilt"]


class Switch(msgspec.Struct, frozen=True, kw_only=True):
    """What a switch did.

    `outcome` holds for all `caches` alike: "same" entries are those that the new subnet would have
    computed; "kept" ones were computed by the subnet before, so that what follows reads them
    through another model's eyes; "rebuilt" ones were computed anew from the `tokens` they hold.
    `read_bytes` are weights that the new subnet reads and the old one did not: at most so much
    comes into memory.
    """

    before: Subnet
    after: Subnet
    outcome: Outcome
    caches: int
    tokens: int
    read_bytes: int
    seconds: float

    def __str__(self) -> str:
        entries = f"{self.tokens} cached tokens of {self.caches} texts {self.outcome}"
        return f"switched in {self.seconds * 1e3:.1f} ms, {entries}"


def outcome_of(
    before: Subnet, after: Subnet, entries: Entries, is_adapted: bool = False
) -> Outcome:
    """What must become of entries that `before` computed, for `after` to go on with them.

    A block's keys and values depend on everything below it and on how it makes them itself. So
    they are the same where the kept blocks with attention up to the last one agree in all that
    lies below; they can be kept where `after` has no block and no group that `before` lacks.
    Adapters (`is_adapted`) depend on the whole shape: then only cuts of one shape agree.
    """
    if _same_entries(before, after) and not (is_adapted and before.shape != after.shape):
        return "same"
    groups = dict(zip(before.shape.blocks, before.shape.groups, strict=True))
    kept = zip(after.shape.blocks, after.shape.groups, strict=True)
    if entries == "keep" and all(count <= groups.get(block, 0) for block, count in kept):
        return "kept"
    return "rebuilt"


def new_bytes(before: Subnet, after: Subnet) -> int:
    """Bytes of planes and scales that `after` reads and `before` does not."""
    read = {cut.name: cut for cut in before.matrices()}
    return sum(
        cut.num_bytes - (_overlap(cut, read[cut.name]) if cut.name in read else 0)
        for cut in after.matrices()
    )


def _same_entries(before: Subnet, after: Subnet) -> bool:
    """Whether all keys and values that `after` makes are those of `before`."""
    if before.bits.embedding != after.bits.embedding:
        return False
    last = max((place for place, count in enumerate(after.shape.groups) if count), default=-1)
    if last < 0:
        return True
    if last >= len(before.shape.blocks):
        return False
    below = range(last)
    return (
        all(_block_of(after, place) == _block_of(before, place) for place in below)
        and _key_bits(after, last) == _key_bits(before, last)
        and after.shape.groups[last] <= before.shape.groups[last]
    )


def _block_of(subnet: Subnet, place: int) -> tuple[object, ...]:
    """All that decides what a kept block computes."""
    shape = subnet.shape
    return (
        shape.blocks[place], shape.groups[place], shape.neurons[place], subnet.bits.blocks[place]
    )  # fmt: skip


def _key_bits(subnet: Subnet, place: int) -> tuple[int, ...]:
    """All that decides the keys and values which a kept block makes in one of its groups."""
    bits = subnet.bits.blocks[place]
    return (subnet.shape.blocks[place], bits.k, bits.v)


def _overlap(cut: MatrixCut, other: MatrixCut) -> int:
    common = MatrixCut(
        cut.name,
        min(cut.rows, other.rows),
        min(cut.columns, other.columns),
        min(cut.planes, other.planes),
    )
    return common.num_bytes
