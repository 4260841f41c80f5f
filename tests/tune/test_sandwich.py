"""The shapes of a step: ends always, the rest without repetition, a function of the step."""

from __future__ import annotations

import msgspec
import pytest

from pliant.errors import UsageError
from pliant.shape import ShapeSpace, SubnetShape, WidthRanking
from pliant.tune import Sandwich, named_shapes, only


def test_full_first_smallest_last_and_no_shape_twice(space: ShapeSpace) -> None:
    names = [named.name for named in named_shapes(space)]
    assert names == ["d3-w1", "d3-w0.5", "d2-w1", "d2-w0.5", "d1-w1", "d1-w0.5"]
    seen = set()
    for step in range(50):
        drawn = [named.name for named in Sandwich(space, 2, seed=1)(step)]
        assert drawn[0] == "d3-w1"
        assert drawn[-1] == "d1-w0.5"
        assert len(set(drawn)) == len(drawn) == 4
        seen.update(drawn)
    assert seen == set(names)


def test_a_step_draws_the_same_shapes_whenever_it_is_asked(space: ShapeSpace) -> None:
    first, again = Sandwich(space, 2, seed=3), Sandwich(space, 2, seed=3)
    draws = [first(step) for step in range(9)]
    assert [again(step) for step in reversed(range(9))] == draws[::-1]
    assert draws != [Sandwich(space, 2, seed=4)(step) for step in range(9)]


def test_a_small_space_gives_all_it_has(space: ShapeSpace) -> None:
    lone = ShapeSpace(space.spec, ((0, 1, 2),), (1.0,))
    assert len(Sandwich(lone)(0)) == 1
    assert {named.name for named in Sandwich(space, 99)(0)} == {n.name for n in named_shapes(space)}
    assert only(named_shapes(space)[2])(7) == (named_shapes(space)[2],)


def test_finer_shapes_are_drawn_too_between_the_same_ends(space: ShapeSpace) -> None:
    ranking = WidthRanking((1, 3, 5, 0, 2, 4, 0, 2, 4, 1, 3, 5), alignment=32)
    finer = msgspec.structs.replace(space, halves=((0, 1, 2, 4, 5), (0, 5)), ranking=ranking)
    draws = [Sandwich(finer, 4)(step) for step in range(40)]
    assert {(drawn[0].name, drawn[-1].name) for drawn in draws} == {("d3-w1", "d1-w0.5")}
    assert {named.name for drawn in draws for named in drawn} == {name for name, _ in finer.named()}
    by_name = {named.name: named.shape for drawn in draws for named in drawn}
    assert by_name["h5-w1"] == SubnetShape((0, 1, 2), (2, 2, 2), (64, 0, 64))


def test_shapes_outside_the_model_are_refused(space: ShapeSpace) -> None:
    with pytest.raises(UsageError, match="Block 5"):
        ShapeSpace(space.spec, ((0, 5),), (1.0,))
    with pytest.raises(UsageError, match="no choice of 7 blocks"):
        space.shape(7, 1.0)
