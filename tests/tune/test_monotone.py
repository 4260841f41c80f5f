"""Shapes that are worse than smaller ones are named, each with the best of them."""

from __future__ import annotations

from pliant.shape import ShapeSpace
from pliant.tune import inversions, named_shapes


def test_a_larger_shape_that_is_worse_is_named(space: ShapeSpace) -> None:
    shapes = named_shapes(space)
    falling = {named.name: float(place) for place, named in enumerate(shapes)}
    assert list(inversions(shapes, falling)) == []
    # Deeper at half width is neither larger nor smaller than shallower at full width.
    crossed = {**falling, "d2-w0.5": 0.5, "d2-w1": 4.0, "d1-w0.5": 0.7}
    assert dict(inversions(shapes, crossed)) == {
        "d3-w0.5": "d2-w0.5", "d2-w1": "d2-w0.5", "d1-w1": "d1-w0.5",
    }  # fmt: skip
    same = dict.fromkeys(falling, 1.0)
    assert list(inversions(shapes, same)) == []
