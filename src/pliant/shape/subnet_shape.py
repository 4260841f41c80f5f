"""`SubnetShape`: which blocks stay, and how many KV groups and neurons each keeps."""

from __future__ import annotations

import math

import msgspec

from pliant.errors import UsageError
from pliant.spec import ModelSpec


class SubnetShape(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Kept blocks (ascending indices of the dense model) and, for each, its kept widths.

    Weights are stored in order of importance, so `groups[n]` and `neurons[n]` are prefixes of
    block `blocks[n]` (Once-for-All's sort-once-then-slice, arXiv 1908.09791). No groups leave a
    block without attention, no neurons without MLP; a block without both is not kept.
    """

    blocks: tuple[int, ...]
    groups: tuple[int, ...]
    neurons: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.blocks:
            raise UsageError("A subnet keeps at least one block; this one keeps none.")
        if list(self.blocks) != sorted(set(self.blocks)) or self.blocks[0] < 0:
            raise UsageError(f"Kept blocks {self.blocks} must be ascending, each named once.")
        if not len(self.blocks) == len(self.groups) == len(self.neurons):
            raise UsageError(
                f"{len(self.blocks)} blocks with {len(self.groups)} group counts and "
                f"{len(self.neurons)} neuron counts; give one of each per block."
            )
        if min(*self.groups, *self.neurons) < 0 or not all(map(max, self.groups, self.neurons)):
            raise UsageError("Every kept block needs at least one KV group or one neuron.")

    @classmethod
    def full(cls, spec: ModelSpec) -> SubnetShape:
        """The shape that keeps everything."""
        count = spec.num_blocks
        return cls(tuple(range(count)), (spec.num_groups,) * count, (spec.ffn_size,) * count)

    @classmethod
    def uniform(
        cls, spec: ModelSpec, blocks: tuple[int, ...], width: float, alignment: int = 64
    ) -> SubnetShape:
        """The given blocks, each at the same width ratio in (0, 1].

        Groups are rounded to the nearest count (at least 1), neurons to the nearest multiple of
        `alignment` (at least one multiple, at most `spec.ffn_size`), halves upwards.
        """
        if not 0 < width <= 1:
            raise UsageError(f"A width is a ratio above 0 and up to 1; {width} was asked for.")
        # `round` would take halves to even counts, so that 2.5 and 3.5 go different ways.
        groups = max(1, math.floor(width * spec.num_groups + 0.5))
        neurons = max(1, math.floor(width * spec.ffn_size / alignment + 0.5)) * alignment
        neurons = spec.ffn_size if width == 1 else min(neurons, spec.ffn_size)
        return cls(blocks, (groups,) * len(blocks), (neurons,) * len(blocks))

    def check_against(self, spec: ModelSpec) -> None:
        """Raise `UsageError` where this shape asks for more than `spec` has."""
        if self.blocks[-1] >= spec.num_blocks:
            raise UsageError(f"Block {self.blocks[-1]} was asked for; there are {spec.num_blocks}.")
        if max(self.groups) > spec.num_groups:
            raise UsageError(f"{max(self.groups)} KV groups asked for; {spec.num_groups} exist.")
        if max(self.neurons) > spec.ffn_size:
            raise UsageError(f"{max(self.neurons)} neurons asked for; {spec.ffn_size} exist.")

    @property
    def is_uniform(self) -> bool:
        """Whether all kept blocks share one width, so that stock formats can hold the cut.

        Blocks without attention or MLP are in no stock format; exports fill them up with zeros.
        """
        one_width = len(set(self.groups)) == 1 and len(set(self.neurons)) == 1
        return one_width and self.has_whole_blocks

    @property
    def has_whole_blocks(self) -> bool:
        """Whether every kept block has attention and MLP."""
        return min(*self.groups, *self.neurons) > 0

    @property
    def num_halves(self) -> int:
        """Kept halves of blocks: each attention and each MLP counts one."""
        return sum(map(bool, self.groups)) + sum(map(bool, self.neurons))
