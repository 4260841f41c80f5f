"""The axes of a picture: round values, in order, within the frame; losses of all sizes."""

from __future__ import annotations

import pytest

from pliant.recipes.report.pictures import Axis, scatter
from pliant.recipes.report.point import Point


@pytest.mark.parametrize(
    ("low", "high"), [(1, 1), (30, 35), (1, 9), (90, 4000), (1e3, 1e12), (0.01, 3)]
)
def test_ticks_are_few_and_within(low: float, high: float) -> None:
    axis = Axis(low, high, 50, 450)
    ticks = axis.ticks()
    assert len(ticks) <= 5 and ticks == sorted(set(ticks))
    assert all(50 <= axis.place(value) <= 450 for value in [*ticks, low, high])
    assert axis.place(low) < axis.place(high) or low == high


@pytest.mark.parametrize("loss", [-0.5, 0.0, 1e-9, 0.2, 1e6])
def test_any_loss_can_be_drawn(loss: float) -> None:
    point = Point(name="b4", weight_bytes=7, loss=loss, is_measured=True, source="text")
    drawn = scatter([point], lambda one: one.weight_bytes, label="", tick=str, title="x")
    assert "nan" not in drawn and "inf" not in drawn and drawn.count("<circle") == 1
