"""The grid of shapes: distinct after rounding, largest first, addressed by depth and width."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from pliant.errors import UsageError
from pliant.shape import (
    ShapeSpace,
    SubnetShape,
    WidthRanking,
    rank_widths,
    shape_of_halves,
)
from pliant.spec import ModelSpec


def make_spec(num_groups: int = 4, ffn_size: int = 512) -> ModelSpec:
    return ModelSpec(
        architecture="llama", vocab_size=97, hidden_size=48, num_blocks=5,
        num_heads=2 * num_groups, num_groups=num_groups, head_dim=10, ffn_size=ffn_size,
        max_context=64, attention_scale=10**-0.5,
    )  # fmt: skip


DEPTHS = {5: (0, 1, 2, 3, 4), 3: (0, 2, 4), 4: (0, 1, 2, 4)}


def test_a_space_enumerates_depths_times_widths_once_each() -> None:
    space = ShapeSpace.of(make_spec(), DEPTHS)
    shapes = list(space)
    assert len(shapes) == len(set(shapes)) == len(space) == 21
    assert shapes[0] == SubnetShape.full(make_spec())
    assert [depth for depth, _, _ in space.items()] == [5] * 7 + [4] * 7 + [3] * 7


def test_widths_that_round_alike_are_offered_once_under_the_larger_ratio() -> None:
    space = ShapeSpace.of(make_spec(num_groups=1, ffn_size=128), DEPTHS)
    assert space.widths == (1.0, 0.625)
    assert {shape.neurons[0] for shape in space} == {128, 64}


def test_any_width_of_a_stored_depth_can_be_taken() -> None:
    space = ShapeSpace.of(make_spec(), DEPTHS)
    assert space.shape(3, 0.3).blocks == (0, 2, 4)
    with pytest.raises(UsageError, match="the depths stored are 5, 4, 3"):
        space.shape(2, 1.0)


def test_finer_axes_join_the_grid() -> None:
    """Half blocks and ranked widths lie between the full shape and the smallest of the grid."""
    spec = make_spec()
    scores = [np.arange(4.0)[::-1] + block for block in range(5)]
    neurons = [np.linspace(9, 0, 512) + block for block in range(5)]
    halves = (tuple(range(10)), (0, 1, 2, 4, 5, 7, 8, 9))
    plain = ShapeSpace.of(spec, DEPTHS, (1.0, 0.5))
    space = msgspec.structs.replace(plain, halves=halves, ranking=rank_widths(scores, neurons))
    named = dict(space.named())
    assert len(named) == len(space) == len(list(space)) == (3 + 2) * 3
    assert next(iter(named)) == "d5-w1"
    assert list(named)[-1] == "d3-w0.5"
    assert [name for name in named if name[0] == "d" and "w" in name] == [
        name for name, _ in plain.named()
    ]
    assert named["h8-w0.5"] == shape_of_halves(spec, halves[1], 0.5)
    assert named["h8-g0.5"].num_halves == 8
    assert not named["h8-g0.5"].is_uniform
    for shape in named.values():
        shape.check_against(spec)


def test_spaces_that_contradict_themselves_are_refused() -> None:
    spec = make_spec()
    for depths, widths in (
        ((), (1.0,)),
        (((0, 1),), ()),
        (((0,), (0, 1)), (1.0,)),
        (((0, 9),), (1.0,)),
        (((0, 1),), (0.5, 1.0)),
    ):
        with pytest.raises(UsageError):
            ShapeSpace(spec, depths, widths)
    with pytest.raises(UsageError, match="halves"):
        ShapeSpace(spec, ((0, 1),), halves=((0,), (0, 1)))
    with pytest.raises(UsageError, match="ranking"):
        ShapeSpace(spec, ((0, 1),), ranking=WidthRanking((0,)))
