"""Predictions learnt from measured cuts: exact where nothing compounds, better where cuts do."""

import math
import random

import numpy as np
import pytest

from pliant.bits import BitPlan, BlockBits
from pliant.errors import UsageError
from pliant.search import LossPredictor, axis_increases
from pliant.search.predictor import LEAST_SHARE, additive
from pliant.sensitivities import Sensitivities
from pliant.shape import SubnetShape
from pliant.spec import ModelSpec
from pliant.subnet import Subnet

SPEC = ModelSpec(
    architecture="llama", vocab_size=101, hidden_size=48, num_blocks=6, num_heads=4, num_groups=2,
    head_dim=12, ffn_size=160, max_context=64, attention_scale=12**-0.5, tied_embeddings=True,
)  # fmt: skip
SENSITIVITIES = Sensitivities(
    dense_loss=2.0,
    depth={6: 2.0, 5: 2.1, 4: 2.3, 3: 2.8},
    width={1.0: 2.0, 0.75: 2.2, 0.5: 2.9},
    planes={1: 6.0, 2: 3.5, 3: 2.3, 4: 2.1, 8: 2.0},
    vocabulary_planes={2: 2.9, 4: 2.1, 8: 2.0},
)
ALIGNMENT = 32
increases = axis_increases(SENSITIVITIES, SPEC, ALIGNMENT)


def cut(depth: int, width: float, planes: int, vocabulary_planes: int) -> Subnet:
    shape = SubnetShape.uniform(SPEC, tuple(range(depth)), width, ALIGNMENT)
    return Subnet(SPEC, shape, BitPlan.uniform(depth, planes, vocabulary_planes))


CUTS = [
    cut(depth, width, planes, vocabulary)
    for depth in (6, 5, 4, 3)
    for width in (1.0, 0.75, 0.5)
    for planes in (2, 3, 4, 8)
    for vocabulary in (2, 4, 8)
]


def additive_loss(subnet: Subnet) -> float:
    return float(np.exp(additive(np.array([increases(subnet)]))[0]))


def compounding_loss(subnet: Subnet) -> float:
    """Cuts of depth and planes make each other worse, smoothly; so it is in trained models."""
    depth, width, planes, vocabulary = increases(subnet)
    return math.exp(depth + 0.8 * width + planes + 2.5 * depth * planes + 0.5 * vocabulary)


def test_an_axis_alone_is_the_measured_sensitivity() -> None:
    for depth, loss in SENSITIVITIES.depth.items():
        assert additive_loss(cut(depth, 1.0, 8, 8)) == pytest.approx(loss / 2)
    for width, loss in SENSITIVITIES.width.items():
        assert additive_loss(cut(6, width, 8, 8)) == pytest.approx(loss / 2)
    for planes, loss in SENSITIVITIES.planes.items():
        assert additive_loss(cut(6, 1.0, planes, 8)) == pytest.approx(loss / 2)


def test_halves_and_mixed_plans_lie_between() -> None:
    half = Subnet(
        SPEC, SubnetShape(tuple(range(6)), (2,) * 5 + (0,), (160,) * 6), BitPlan.uniform(6, 8, 8)
    )
    assert 1 < additive_loss(half) < SENSITIVITIES.depth[5] / 2
    blocks = (BlockBits(3, 3, 3, 3, 4, 4, 4),) * 6
    mixed = Subnet(SPEC, SubnetShape.full(SPEC), BitPlan(8, 8, blocks))
    assert SENSITIVITIES.planes[4] < 2 * additive_loss(mixed) < SENSITIVITIES.planes[3]


def test_additive_losses_stay_additive() -> None:
    sample = random.Random(0).sample(CUTS, 16)
    predictor = LossPredictor(increases, {net: additive_loss(net) for net in sample})
    expected = [additive_loss(net) for net in CUTS]
    np.testing.assert_allclose(predictor.predict(CUTS), expected, rtol=1e-6)
    assert predictor.error < 1e-6


@pytest.mark.parametrize("seed", range(3))
def test_it_learns_how_cuts_compound(seed: int) -> None:
    """On cuts it has not seen its error is less than half of the additive prediction's."""
    shuffled = random.Random(seed).sample(CUTS, len(CUTS))
    seen, held_out = shuffled[:32], shuffled[32:]
    predictor = LossPredictor(increases, {net: compounding_loss(net) for net in seen})
    true = np.log([compounding_loss(net) for net in held_out])
    learnt = np.sqrt(np.mean((np.log(predictor.predict(held_out)) - true) ** 2))
    added = np.sqrt(np.mean((np.log([additive_loss(net) for net in held_out]) - true) ** 2))
    print(f"{predictor.kernel}: learnt {learnt:.4f}, additive {added:.4f}")
    assert learnt < added / 2
    # what it says of itself is right in size
    assert learnt / 4 < predictor.error < learnt * 4


def test_far_from_everything_measured_it_is_additive() -> None:
    near = [net for net in CUTS if net.bits.blocks[0].q == 8]
    predictor = LossPredictor(increases, {net: additive_loss(net) * 1.001 for net in near})
    far = cut(3, 0.5, 1, 2)
    assert predictor.predict([far])[0] == pytest.approx(additive_loss(far), rel=0.05)


def test_products_do_not_reach_below_what_one_axis_costs() -> None:
    """Taught by shapes that lose less than their axes, and by no cut of few planes."""
    near = [net for net in CUTS if net.bits.blocks[0].q >= 6]
    depth_only = {net: additive_loss(net) ** 0.3 for net in near}
    predictor = LossPredictor(increases, depth_only)
    for net in CUTS:
        least = LEAST_SHARE * max(increases(net))
        assert np.log(predictor.predict([net])[0]) >= least - 1e-9
    unbounded = additive(np.array([increases(net) for net in CUTS]))
    unbounded += (
        predictor._fit.kernel.between(np.array([increases(net) for net in CUTS]), predictor._x_NA)
        @ predictor._fit.weights
    )
    assert (np.log(predictor.predict(CUTS)) > unbounded + 0.01).any()


def test_too_little_is_refused() -> None:
    measured = dict.fromkeys(CUTS[:20], 1.5)
    with pytest.raises(UsageError, match="7 of 7 are there"):
        LossPredictor(increases, dict(list(measured.items())[:7]))
    broken = {net: math.inf if place > 4 else 1.5 for place, net in enumerate(measured)}
    with pytest.raises(UsageError, match="5 of 20 are there"):
        LossPredictor(increases, broken)
