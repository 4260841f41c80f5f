"""Paths of halves and rankings of widths on a small model."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from pliant.calibrate import (
    DepthEvaluator,
    find_half_path,
    find_width_orders,
    find_width_ranking,
    mean_loss,
)
from pliant.errors import UsageError
from pliant.models import Supernet
from pliant.shape import SubnetShape, shape_of_halves


@pytest.fixture
def net(make_supernet: Callable[..., Supernet]) -> Supernet:
    return make_supernet(num_blocks=3)


def test_losses_of_halves_are_those_of_their_shapes(net: Supernet, tokens_BT: torch.Tensor) -> None:
    keeps = [(0, 1, 2, 3), (0, 2, 3), (1, 2), (0,), tuple(range(2 * net.spec.num_blocks))]
    found = DepthEvaluator(net, tokens_BT, halves=True)(keeps)
    for keep, loss in zip(keeps, found, strict=True):
        assert loss == mean_loss(net, tokens_BT, shape_of_halves(net.spec, keep))


def test_whole_blocks_are_pairs_of_halves(net: Supernet, tokens_BT: torch.Tensor) -> None:
    blocks, halves = [(0, 2), (1, 2), (2,)], [(0, 1, 4, 5), (2, 3, 4, 5), (4, 5)]
    assert DepthEvaluator(net, tokens_BT)(blocks) == pytest.approx(
        DepthEvaluator(net, tokens_BT, halves=True)(halves), rel=1e-6
    )


@pytest.mark.parametrize("method", ["greedy", "single-drop", "amoeba"])
def test_a_path_of_halves(net: Supernet, tokens_BT: torch.Tensor, method: str) -> None:
    """Each loss is that of its halves, the last block stays whole, the first drop is the best."""
    reports: list[tuple[int, int]] = []
    path = find_half_path(
        net, tokens_BT, method, 1,
        progress=lambda stage, done, total: reports.append((done, total)),
    )  # type: ignore[arg-type]  # fmt: skip
    num_halves = 2 * net.spec.num_blocks
    assert set(path.blocks) == set(range(2, num_halves + 1))
    for choice in path.choices:
        assert {num_halves - 2, num_halves - 1} <= set(choice.blocks)
        shape = shape_of_halves(net.spec, choice.blocks)
        assert choice.loss == mean_loss(net, tokens_BT, shape)
    everything = set(range(num_halves))
    single = [
        mean_loss(net, tokens_BT, shape_of_halves(net.spec, sorted(everything - {half})))
        for half in range(num_halves - 2)
    ]
    assert path.losses[num_halves - 1] == min(single)
    assert reports[-1][0] == reports[-1][1]


def test_influence_knows_no_halves(net: Supernet, tokens_BT: torch.Tensor) -> None:
    with pytest.raises(UsageError, match="whole blocks"):
        find_half_path(net, tokens_BT, "influence", 1)


def test_a_ranking_follows_the_orders(net: Supernet, tokens_BT: torch.Tensor) -> None:
    """Of a model in order, each half's units come in its order; a half that matters more leads."""
    net = Supernet(net.spec, {n: w.detach().clone() for n, w in net.weights.items()}, net.shape)
    for name in ("down", "up"):
        net.weights[f"blocks.1.{name}"][: net.spec.ffn_size // 2] *= 8
    net.permute(find_width_orders(net, tokens_BT))
    ranking = find_width_ranking(net, tokens_BT, alignment=8)
    ranking.check(net.spec)
    full = SubnetShape.full(net.spec)
    losses = [
        mean_loss(net, tokens_BT, ranking.shape(net.spec, full, ratio)) for ratio in (0.4, 1.0)
    ]
    assert losses[1] == mean_loss(net, tokens_BT)
    assert np.isfinite(losses).all()
