"""Width orders: in which order the KV groups and neurons of each block matter.

Shape suffixes: O rows of a matrix, I its columns, which are channels of `o` or neurons of `down`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

from pliant.errors import CheckpointError, DataError, UsageError
from pliant.shape.channels import ChannelStatistics, Float64Array, WeightArray
from pliant.spec import ModelSpec

WidthMethod = Literal["flap", "wanda-sp", "activation-mean", "taylor", "magnitude", "random"]

#: Names of all width scores, the default first.
WIDTH_METHODS: tuple[WidthMethod, ...] = get_args(WidthMethod)


class WidthOrders(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """For each block a permutation of its KV groups and one of its neurons.

    Entry `n` of `groups[block]` or `neurons[block]` is the unit of the source checkpoint that is
    n-th most important, so the ordered weight is `weight[order]` and every width is a prefix.
    """

    groups: tuple[tuple[int, ...], ...]
    neurons: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if len(self.groups) != len(self.neurons):
            raise UsageError(
                f"Orders of groups for {len(self.groups)} blocks and of neurons for "
                f"{len(self.neurons)}; give one of each per block."
            )
        for kind, orders in (("groups", self.groups), ("neurons", self.neurons)):
            for block, order in enumerate(orders):
                if sorted(order) != list(range(len(order))):
                    raise UsageError(
                        f"The order of {kind} of block {block} is not a permutation: "
                        f"it must name each of 0 to {len(order) - 1} once."
                    )

    @classmethod
    def identity(cls, spec: ModelSpec) -> WidthOrders:
        """The orders that leave every weight where it is."""
        groups, neurons = tuple(range(spec.num_groups)), tuple(range(spec.ffn_size))
        return cls((groups,) * spec.num_blocks, (neurons,) * spec.num_blocks)

    def check(self, spec: ModelSpec) -> None:
        """Raise `UsageError` where these are not orders of a model of this spec."""
        if len(self.groups) != spec.num_blocks:
            raise UsageError(
                f"Orders for {len(self.groups)} blocks; the model has {spec.num_blocks}."
            )
        for kind, orders, size in (
            ("groups", self.groups, spec.num_groups),
            ("neurons", self.neurons, spec.ffn_size),
        ):
            for block, order in enumerate(orders):
                if len(order) != size:
                    raise UsageError(
                        f"The order of {kind} of block {block} has {len(order)} entries; "
                        f"the model has {size}."
                    )

    def inverse(self) -> WidthOrders:
        """The orders that undo these: ordering by one and then the other is the identity."""

        def undo(order: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(int(place) for place in np.argsort(np.asarray(order, dtype=np.int64)))

        return WidthOrders(tuple(map(undo, self.groups)), tuple(map(undo, self.neurons)))


def width_scores(
    method: WidthMethod, statistics: ChannelStatistics, weight_OI: WeightArray, seed: int = 0
) -> Float64Array:
    """Importance of each input channel of a matrix, fp64 `[I]`, more is more important.

    The matrix is `o` (channels of heads) or `down` (neurons): what a channel adds to the residual
    stream passes through its column there.

    - `flap`: variance x squared column norm, the part of the output that a constant bias cannot
      replace (FLAP, arXiv 2312.11983).
    - `wanda-sp`: sum of |weight| of the column x norm of the activation (the structured Wanda of
      FLAP's comparison; Wanda is arXiv 2306.11695).
    - `activation-mean`: mean of |x|, blind to the weight (Minitron, arXiv 2407.14679).
    - `taylor`: sum over the column of |weight x gradient|, the first-order change of the loss
      (LLM-Pruner, arXiv 2305.11627); needs `statistics.gradient`.
    - `magnitude`: squared column norm, blind to the data.
    - `random`: uniform numbers drawn from `seed`, the baseline every other method must beat.

    Raises `UsageError` for an unknown method, `DataError` where the statistics lack what the
    method needs, and `CheckpointError` for scores that are not finite.
    """
    if method not in WIDTH_METHODS:
        raise UsageError(
            f"There is no width score {method!r}; choose one of {', '.join(WIDTH_METHODS)}."
        )
    if weight_OI.shape[1] != len(statistics.mean):
        raise UsageError(
            f"Statistics of {len(statistics.mean)} channels for a matrix of "
            f"{weight_OI.shape[1]} columns; calibrate the same model that is ordered."
        )
    if method == "random":
        return np.asarray(np.random.default_rng(seed).random(weight_OI.shape[1]))
    with np.errstate(over="ignore", invalid="ignore"):
        scores_I = _SCORES[method](statistics, np.asarray(weight_OI, dtype=np.float64))
    if not np.isfinite(scores_I).all():
        raise CheckpointError(
            f"The {method} score of {int((~np.isfinite(scores_I)).sum())} channels is not finite; "
            "the weights or the activations of this block overflow."
        )
    return scores_I


def _flap(statistics: ChannelStatistics, weight_OI: Float64Array) -> Float64Array:
    return statistics.variance * _squared_norm(weight_OI)


def _wanda_sp(statistics: ChannelStatistics, weight_OI: Float64Array) -> Float64Array:
    return np.asarray(np.abs(weight_OI).sum(axis=0) * statistics.norm)


def _activation_mean(statistics: ChannelStatistics, weight_OI: Float64Array) -> Float64Array:
    return statistics.absolute


def _taylor(statistics: ChannelStatistics, weight_OI: Float64Array) -> Float64Array:
    if statistics.gradient is None:
        raise DataError("The taylor score needs gradients; measure them with a backward pass.")
    return np.asarray(np.abs(weight_OI * statistics.gradient).sum(axis=0))


def _magnitude(statistics: ChannelStatistics, weight_OI: Float64Array) -> Float64Array:
    return _squared_norm(weight_OI)


def _squared_norm(weight_OI: Float64Array) -> Float64Array:
    return np.asarray(np.square(weight_OI).sum(axis=0))


_SCORES: dict[str, Callable[[ChannelStatistics, Float64Array], Float64Array]] = {
    "flap": _flap,
    "wanda-sp": _wanda_sp,
    "activation-mean": _activation_mean,
    "taylor": _taylor,
    "magnitude": _magnitude,
}


def group_scores(channel_scores_I: Float64Array, num_groups: int) -> Float64Array:
    """Importance of each KV group: the sum over the channels of all its query heads.

    `channel_scores_I` are scores of the columns of `o`, `num_groups * heads_per_group * head_dim`
    of them. A group is what is dropped under grouped-query attention (arXiv 2305.13245), because
    dropping single heads would change how many share a key. With one head per group this is FLAP.
    """
    return np.asarray(channel_scores_I.reshape(num_groups, -1).sum(axis=1))


def descending_order(scores: Float64Array | Sequence[float]) -> tuple[int, ...]:
    """Units by falling score; equal scores keep their order, so the result is reproducible."""
    order = np.argsort(-np.asarray(scores, dtype=np.float64), kind="stable")
    return tuple(int(unit) for unit in order)


def bias_compensation(
    weight_OI: WeightArray, mean_I: Float64Array, kept: int
) -> NDArray[np.float32]:
    """What cut channels add on average, to be added to the bias of the matrix: fp32 `[O]`.

    `weight_OI` is `o` or `down` in order of importance, `mean_I` the mean of its inputs in the
    same order, and `kept` the number of channels that stay. With it a channel that never varies
    costs nothing when cut (FLAP, arXiv 2312.11983). Only an architecture whose `o` or `down` has a
    bias has a place for it; where there is none the loss is measured without it.
    """
    if not 0 <= kept <= weight_OI.shape[1]:
        raise UsageError(f"{kept} of {weight_OI.shape[1]} channels cannot be kept.")
    cut_OI = np.asarray(weight_OI[:, kept:], dtype=np.float64)
    return (cut_OI @ mean_I[kept:]).astype(np.float32)
