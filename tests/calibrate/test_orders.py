"""Orders found on a model can be baked in, find what matters, and beat chance on a trained one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from pliant.calibrate import find_width_orders, mean_loss, stream_statistics
from pliant.models import Supernet
from pliant.shape import WIDTH_METHODS, SubnetShape, WidthMethod, WidthOrders, bias_compensation

MakeSupernet = Callable[..., Supernet]
Trained = Callable[[str, str, int, int], tuple[Supernet, torch.Tensor]]


def copy_of(supernet: Supernet) -> Supernet:
    weights = {name: weight.detach().clone() for name, weight in supernet.weights.items()}
    return Supernet(supernet.spec, weights, supernet.shape)


@pytest.mark.parametrize("method", WIDTH_METHODS)
def test_orders_are_permutations_and_leave_the_dense_function(
    make_supernet: MakeSupernet, tokens_BT: torch.Tensor, method: WidthMethod
) -> None:
    supernet = make_supernet(qkv_bias=True, qk_norm=True, tied_embeddings=True)
    orders = find_width_orders(supernet, tokens_BT, method)
    orders.check(supernet.spec)
    assert orders == find_width_orders(supernet, tokens_BT, method, batch_size=len(tokens_BT))
    ordered = copy_of(supernet)
    ordered.permute(orders)
    torch.testing.assert_close(ordered(tokens_BT), supernet(tokens_BT), atol=1e-5, rtol=1e-5)
    ordered.permute(orders.inverse())
    for name, weight in supernet.weights.items():
        assert torch.equal(ordered.weights[name], weight)


@pytest.mark.parametrize("method", ["flap", "wanda-sp", "activation-mean", "taylor"])
def test_units_that_are_never_used_come_last(
    make_supernet: MakeSupernet, tokens_BT: torch.Tensor, method: WidthMethod
) -> None:
    supernet = make_supernet()
    unused = [3, 17, 40, 69]
    for block in range(6):
        supernet.weights[f"blocks.{block}.up"][unused] = 0
        supernet.weights[f"blocks.{block}.v"][10:20] = 0
    orders = find_width_orders(supernet, tokens_BT, method)
    for groups, neurons in zip(orders.groups, orders.neurons, strict=True):
        assert groups[-1] == 1
        assert list(neurons[-4:]) == unused


def test_shuffling_the_units_of_a_model_shuffles_its_order_only(
    make_supernet: MakeSupernet, tokens_BT: torch.Tensor
) -> None:
    supernet = make_supernet()
    random = np.random.default_rng(3)
    shuffle = WidthOrders(
        tuple(tuple(random.permutation(3).tolist()) for _ in range(6)),
        tuple(tuple(random.permutation(70).tolist()) for _ in range(6)),
    )
    shuffled = copy_of(supernet)
    shuffled.permute(shuffle)
    plain = find_width_orders(supernet, tokens_BT)
    found = find_width_orders(shuffled, tokens_BT)
    for kind in ("groups", "neurons"):
        for order, places, expected in zip(
            getattr(found, kind), getattr(shuffle, kind), getattr(plain, kind), strict=True
        ):
            assert tuple(places[unit] for unit in order) == expected


def test_random_orders_differ_between_blocks_and_seeds(
    make_supernet: MakeSupernet, tokens_BT: torch.Tensor
) -> None:
    supernet = make_supernet()
    one, two = (find_width_orders(supernet, tokens_BT, "random", seed) for seed in (1, 2))
    assert len(set(one.neurons)) == 6
    assert one != two


def test_bias_compensation_makes_the_cut_of_constant_neurons_free(
    make_supernet: MakeSupernet, tokens_BT: torch.Tensor
) -> None:
    supernet = make_supernet(mlp_bias=True, norm_epsilon=1e-5)
    constant = torch.arange(60, 70)
    for block in range(6):
        for matrix in ("gate", "up"):
            supernet.weights[f"blocks.{block}.{matrix}"][constant] = 0
            supernet.weights[f"blocks.{block}.{matrix}.bias"][constant] = 1.5
    supernet.permute(find_width_orders(supernet, tokens_BT))
    dense, cut = mean_loss(supernet, tokens_BT), copy_of(supernet)
    for block, seen in enumerate(stream_statistics(supernet, tokens_BT)):
        down_OI = supernet.weights[f"blocks.{block}.down"].numpy()
        cut.weights[f"blocks.{block}.down.bias"] += torch.from_numpy(
            bias_compensation(down_OI, seen.mlp.mean, 60)
        )
    shape = SubnetShape(tuple(range(6)), (3,) * 6, (60,) * 6)
    assert mean_loss(cut, tokens_BT, shape) == pytest.approx(dense, abs=1e-5)
    assert abs(mean_loss(supernet, tokens_BT, shape) - dense) > 1e-3


@pytest.mark.parametrize("model", ["stories260K", "tale-6m-draft"])
def test_on_a_trained_model_flap_beats_random_at_half_width(trained: Trained, model: str) -> None:
    supernet, calibration_BT = trained(model, "children_valid.txt", 24, 64)
    held_out_BT, calibration_BT = calibration_BT[:8], calibration_BT[8:]

    def loss_at_half(method: WidthMethod, seed: int = 0) -> float:
        ordered = copy_of(supernet)
        ordered.permute(find_width_orders(supernet, calibration_BT, method, seed))
        every = tuple(range(supernet.spec.num_blocks))
        return mean_loss(ordered, held_out_BT, SubnetShape.uniform(supernet.spec, every, 0.5))

    flap = loss_at_half("flap")
    assert flap < min(loss_at_half("random", seed) for seed in range(3))
