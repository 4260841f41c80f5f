"""Calibration over weights that are read from disk a block at a time gives the same results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import torch

from pliant.bits import codecs
from pliant.calibrate import (
    find_depth_paths,
    find_width_orders,
    mean_loss,
    measure_sensitivities,
)
from pliant.models import Supernet, streamed_supernet

MakeSupernet = Callable[..., Supernet]


def streamed(supernet: Supernet, reads: Counter[str]) -> Supernet:
    """The same model, holding one block or one matrix of the vocabulary at a time."""

    def read(name: str) -> torch.Tensor:
        reads[name] += 1
        return supernet.weights[name].clone()

    return streamed_supernet(supernet.spec, read, max_bytes=1)


def test_orders_and_losses_read_each_block_once(
    make_supernet: MakeSupernet, tokens_BT: torch.Tensor
) -> None:
    supernet, reads = make_supernet(), Counter[str]()
    orders = find_width_orders(streamed(supernet, reads), tokens_BT, batch_size=2)
    assert orders == find_width_orders(supernet, tokens_BT, batch_size=2)
    loss = mean_loss(streamed(supernet, reads), tokens_BT, batch_size=2)
    assert loss == mean_loss(supernet, tokens_BT, batch_size=2)
    assert {reads[name] for name in reads if name.startswith("blocks.")} == {2}


def test_depths_gradients_and_sensitivities_are_the_same(
    make_supernet: MakeSupernet, tokens_BT: torch.Tensor
) -> None:
    supernet = make_supernet()
    results = []
    for model in (supernet, streamed(supernet, Counter())):
        path = find_depth_paths(model, tokens_BT, ("amoeba",), 3)["amoeba"]
        orders = find_width_orders(model, tokens_BT, "taylor")
        found = measure_sensitivities(
            model, tokens_BT, path.blocks, codecs["uniform"], planes=(2, 4), vocabulary_planes=(4,)
        )
        results.append((path, orders, found))
    assert results[0] == results[1]
