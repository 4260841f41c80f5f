"""Finer shapes: halves of blocks as units of depth, and widths ranked across all blocks.

A half is numbered 2 b for the attention of block b and 2 b + 1 for its MLP, so that a depth search
over halves is one over twice as many blocks.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from pliant.errors import UsageError
from pliant.shape.channels import Float64Array
from pliant.shape.subnet_shape import SubnetShape
from pliant.spec import ModelSpec


def shape_of_halves(
    spec: ModelSpec, halves: Sequence[int], width: float = 1.0, alignment: int = 64
) -> SubnetShape:
    """The shape that keeps these halves, ascending, each at the same width ratio in (0, 1]."""
    if not halves or list(halves) != sorted(set(halves)) or halves[0] < 0:
        raise UsageError(f"Kept halves {tuple(halves)} must be ascending, each named once.")
    kept = set(halves)
    blocks = tuple(sorted({half // 2 for half in halves}))
    whole = SubnetShape.uniform(spec, blocks, width, alignment)
    return SubnetShape(
        blocks,
        tuple(whole.groups[0] if 2 * block in kept else 0 for block in blocks),
        tuple(whole.neurons[0] if 2 * block + 1 in kept else 0 for block in blocks),
    )


class WidthRanking(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One order of importance for the widths of all blocks (FLAP, arXiv 2312.11983).

    `units` names halves, the most important first: each time one is named, its next group or its
    next `alignment` neurons come (the last ones of a block may be fewer). As weights lie in order
    of importance within a block, that is all there is to know.
    """

    units: tuple[int, ...]
    alignment: int = 64

    def check(self, spec: ModelSpec) -> None:
        """Raise `UsageError` unless every unit of a model of this spec is named once."""
        if self.alignment < 1:
            raise UsageError(f"Neurons are ranked {self.alignment} at a time; take 1 or more.")
        counts = np.zeros(2 * spec.num_blocks, np.int64)
        for unit in self.units:
            if not 0 <= unit < len(counts):
                raise UsageError(f"Half {unit} is ranked; there are {len(counts)}.")
            counts[unit] += 1
        runs = -(-spec.ffn_size // self.alignment)
        if (counts[::2] != spec.num_groups).any() or (counts[1::2] != runs).any():
            raise UsageError(
                f"A ranking names each attention {spec.num_groups} times and each MLP {runs} "
                "times; this one does not."
            )

    def shape(self, spec: ModelSpec, whole: SubnetShape, ratio: float) -> SubnetShape:
        """The shape that keeps the most important units of `whole`'s halves, `ratio` of weights.

        `whole` names the halves, at any width. Each keeps one unit at least; the units come in
        order until the share of the weights of these halves is nearest to `ratio`.
        """
        if not 0 < ratio <= 1:
            raise UsageError(f"A width is a ratio above 0 and up to 1; {ratio} was asked for.")
        kept: dict[int, int] = {}
        for block, groups, neurons in zip(whole.blocks, whole.groups, whole.neurons, strict=True):
            kept |= {2 * block: 1} if groups else {}
            kept |= {2 * block + 1: min(self.alignment, spec.ffn_size)} if neurons else {}
        first = set(kept)
        full = {half: spec.ffn_size if half % 2 else spec.num_groups for half in kept}
        wanted = ratio * sum(_weights(spec, half, width) for half, width in full.items())
        held = sum(_weights(spec, half, width) for half, width in kept.items())
        for half in self.units:
            if half not in kept:
                continue
            if half in first:
                first.remove(half)
                continue
            more = min(self.alignment, full[half] - kept[half]) if half % 2 else 1
            cost = _weights(spec, half, more)
            # Stops before the unit that would lead further away than it came near.
            if held + cost / 2 > wanted:
                break
            kept[half] += more
            held += cost
        return SubnetShape(
            whole.blocks,
            tuple(kept.get(2 * block, 0) for block in whole.blocks),
            tuple(kept.get(2 * block + 1, 0) for block in whole.blocks),
        )


def _weights(spec: ModelSpec, half: int, width: int) -> int:
    """Weights of the matrices of a half of that many groups or neurons."""
    return spec.block_weights(0, width) if half % 2 else spec.block_weights(width, 0)


def rank_widths(
    group_scores: Sequence[Float64Array], neuron_scores: Sequence[Float64Array], alignment: int = 64
) -> WidthRanking:
    """The ranking of all units by scores of each block's groups `[G]` and neurons `[F]`.

    Scores are given in the stored order, most important first. As FLAP does, they are made
    comparable by their mean and deviation within each half; a run of neurons has the mean of its
    scores. No unit comes before one that is stored before it.
    """
    entries: list[tuple[float, int, int]] = []
    for block, (groups, neurons) in enumerate(zip(group_scores, neuron_scores, strict=True)):
        runs = np.array_split(_standardized(neurons), range(alignment, len(neurons), alignment))
        halves = (_standardized(groups), np.array([run.mean() for run in runs]))
        for kind, scores in enumerate(halves):
            falling = np.minimum.accumulate(scores)
            entries += [(-score, place, 2 * block + kind) for place, score in enumerate(falling)]
    return WidthRanking(tuple(half for *_, half in sorted(entries)), alignment)


def _standardized(scores: Float64Array) -> Float64Array:
    deviation = float(scores.std())
    return np.asarray((scores - scores.mean()) / (deviation or 1.0))
