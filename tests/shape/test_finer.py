"""Halves of blocks and widths ranked across blocks."""

import itertools

import numpy as np
import pytest

from pliant.errors import UsageError
from pliant.shape import SubnetShape, WidthRanking, rank_widths, shape_of_halves
from pliant.spec import ModelSpec

SPEC = ModelSpec(
    architecture="llama", vocab_size=101, hidden_size=48, num_blocks=3, num_heads=4, num_groups=2,
    head_dim=12, ffn_size=160, max_context=64, attention_scale=12**-0.5,
)  # fmt: skip
FULL = SubnetShape.full(SPEC)


def weights(shape: SubnetShape) -> int:
    return sum(map(SPEC.block_weights, shape.groups, shape.neurons))


@pytest.fixture
def ranking() -> WidthRanking:
    dice = np.random.default_rng(0)
    groups = [np.sort(dice.normal(0, 1, 2))[::-1] for _ in range(3)]
    neurons = [np.sort(dice.normal(0, 1 + block, 160))[::-1] for block in range(3)]
    return rank_widths(groups, neurons, 32)


def test_halves_make_a_shape() -> None:
    shape = shape_of_halves(SPEC, (0, 1, 2, 5))
    assert shape == SubnetShape((0, 1, 2), (2, 2, 0), (160, 0, 160))
    assert shape.num_halves == 4
    assert shape_of_halves(SPEC, range(6), 0.5, 32) == SubnetShape.uniform(SPEC, (0, 1, 2), 0.5, 32)
    assert shape_of_halves(SPEC, (4,)) == SubnetShape((2,), (2,), (0,))


@pytest.mark.parametrize("halves", [(), (1, 0), (0, 0), (-1,)])
def test_impossible_halves_are_refused(halves: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="ascending"):
        shape_of_halves(SPEC, halves)


def test_a_ranking_names_every_unit_once(ranking: WidthRanking) -> None:
    ranking.check(SPEC)
    assert sorted(ranking.units) == sorted([0, 2, 4] * 2 + [1, 3, 5] * 5)
    for wrong in (ranking.units[1:], (*ranking.units, 6), (*ranking.units[1:], 1), (-1,)):
        with pytest.raises(UsageError):
            WidthRanking(wrong, 32).check(SPEC)
    with pytest.raises(UsageError, match="1 or more"):
        WidthRanking(ranking.units, 0).check(SPEC)


def test_a_ranking_takes_the_most_important_first() -> None:
    """A block whose scores are all alike is ranked in between; steep ones lead and trail."""
    flat, steep = np.full(160, 3.0), np.linspace(10, 0, 160)
    ranking = rank_widths([np.ones(2)] * 2, [flat, steep], 32)
    neurons = [half for half in ranking.units if half % 2]
    assert neurons == [3, 3, 1, 1, 1, 1, 1, 3, 3, 3] or neurons == [3, 3, 3, 1, 1, 1, 1, 1, 3, 3]


@pytest.mark.parametrize("halves", [tuple(range(6)), (0, 1, 3, 4), (1, 3), (0,)])
def test_ranked_shapes_are_nested_and_near_their_size(
    ranking: WidthRanking, halves: tuple[int, ...]
) -> None:
    whole = shape_of_halves(SPEC, halves)
    largest_unit = max(SPEC.block_weights(1, 0), SPEC.block_weights(0, 32))
    least = weights(SubnetShape(whole.blocks, tuple(map(bool, whole.groups)),
                                tuple(32 * bool(n) for n in whole.neurons)))  # fmt: skip
    shapes = [ranking.shape(SPEC, whole, ratio) for ratio in np.linspace(0.05, 1, 20)]
    for shape, ratio in zip(shapes, np.linspace(0.05, 1, 20), strict=True):
        shape.check_against(SPEC)
        assert shape.num_halves == len(halves)
        wanted = max(ratio * weights(whole), least)
        assert abs(weights(shape) - wanted) <= largest_unit / 2 + least * (wanted == least)
    assert shapes[-1] == whole
    for smaller, larger in itertools.pairwise(shapes):
        assert all(map(int.__le__, smaller.groups, larger.groups))
        assert all(map(int.__le__, smaller.neurons, larger.neurons))


def test_an_odd_last_run_of_neurons() -> None:
    ranking = rank_widths([np.arange(2.0)[::-1]] * 3, [np.arange(160.0)[::-1]] * 3, 64)
    ranking.check(SPEC)
    assert ranking.shape(SPEC, FULL, 1.0) == FULL
    assert {n % 64 for n in ranking.shape(SPEC, FULL, 0.6).neurons} <= {0, 160 % 64}


@pytest.mark.parametrize("ratio", [0, -1, 1.1])
def test_ratios_outside_are_refused(ranking: WidthRanking, ratio: float) -> None:
    with pytest.raises(UsageError, match="ratio"):
        ranking.shape(SPEC, FULL, ratio)
