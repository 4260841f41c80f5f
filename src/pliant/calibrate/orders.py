"""Width orders of a model: which KV groups and neurons of each block matter most."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray

from pliant.calibrate.loss import BATCH_SIZE
from pliant.calibrate.statistics import gradient_statistics, stream_statistics
from pliant.errors import DataError
from pliant.measurement import Progress, silent
from pliant.models import Supernet
from pliant.shape import (
    ChannelStatistics,
    WidthMethod,
    WidthOrders,
    WidthRanking,
    descending_order,
    group_scores,
    rank_widths,
    width_scores,
)
from pliant.spec import ModelSpec


def find_width_orders(
    supernet: Supernet,
    tokens_BT: torch.Tensor | None,
    method: WidthMethod = "flap",
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    progress: Progress = silent,
) -> WidthOrders:
    """Orders of KV groups and neurons by falling importance under `method` (see `width_scores`).

    `tokens_BT` are calibration windows, int64; `magnitude` and `random` do not look at them
    and take None.
    `Supernet.permute` bakes the result in. Raises what `width_scores` and `stream_statistics` do.
    """
    groups, neurons = [], []
    statistics = _statistics(supernet, tokens_BT, method, batch_size, progress)
    for block, (attention, mlp) in enumerate(statistics):
        o_OI, down_OI = (
            supernet.weights[f"blocks.{block}.{matrix}"].detach().float().cpu().numpy()
            for matrix in ("o", "down")
        )
        order = block_order(supernet.spec, block, attention, mlp, o_OI, down_OI, method, seed)
        groups.append(order[0])
        neurons.append(order[1])
    return WidthOrders(tuple(groups), tuple(neurons))


def find_width_ranking(
    supernet: Supernet,
    tokens_BT: torch.Tensor,
    method: WidthMethod = "flap",
    alignment: int = 64,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    progress: Progress = silent,
) -> WidthRanking:
    """One ranking of the groups and neurons of all blocks of a model that lies in order.

    `supernet` has been permuted; scores and calibration windows are as in `find_width_orders`.
    """
    groups, neurons = [], []
    for block, (attention, mlp) in enumerate(
        _statistics(supernet, tokens_BT, method, batch_size, progress)
    ):
        o_OI, down_OI = (
            supernet.weights[f"blocks.{block}.{matrix}"].detach().float().cpu().numpy()
            for matrix in ("o", "down")
        )
        group_seed, neuron_seed = np.random.SeedSequence([seed, block]).generate_state(2)
        channel_scores_I = width_scores(method, attention, o_OI, int(group_seed))
        groups.append(group_scores(channel_scores_I, supernet.spec.num_groups))
        neurons.append(width_scores(method, mlp, down_OI, int(neuron_seed)))
    return rank_widths(groups, neurons, alignment)


def block_order(
    spec: ModelSpec,
    block: int,
    attention: ChannelStatistics,
    mlp: ChannelStatistics,
    o_OI: NDArray[np.float32],
    down_OI: NDArray[np.float32],
    method: WidthMethod = "flap",
    seed: int = 0,
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The orders of KV groups and of neurons of one block, from what was seen in it.

    `attention` and `mlp` are statistics of the inputs of `o` and `down`, whose fp32 weights are
    given beside them.
    """
    # Blocks and matrices must not share a random order, or random would be a structured cut.
    group_seed, neuron_seed = np.random.SeedSequence([seed, block]).generate_state(2)
    channel_scores_I = width_scores(method, attention, o_OI, int(group_seed))
    neuron_scores_I = width_scores(method, mlp, down_OI, int(neuron_seed))
    groups = descending_order(group_scores(channel_scores_I, spec.num_groups))
    return groups, descending_order(neuron_scores_I)


def _statistics(
    supernet: Supernet,
    tokens_BT: torch.Tensor | None,
    method: WidthMethod,
    batch_size: int,
    progress: Progress,
) -> Iterable[tuple[ChannelStatistics, ChannelStatistics]]:
    """Statistics of the inputs of `o` and `down` of each block, as far as `method` needs them."""
    spec = supernet.spec
    if method in ("magnitude", "random"):
        channels = spec.num_heads * spec.head_dim
        unseen = ChannelStatistics.empty(channels), ChannelStatistics.empty(spec.ffn_size)
        return [unseen] * spec.num_blocks
    if tokens_BT is None:
        raise DataError(f"The width score {method} looks at calibration text; none was given.")
    if method == "taylor":
        return gradient_statistics(supernet, tokens_BT, batch_size, progress)
    stream = stream_statistics(supernet, tokens_BT, batch_size, progress)
    return ((seen.attention, seen.mlp) for seen in stream)
