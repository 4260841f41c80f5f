"""The comparison of predictors of few measurements: what it measures, and what it compares."""

from __future__ import annotations

import importlib
from types import ModuleType

import numpy as np
import pytest


@pytest.fixture(scope="module")
def few() -> ModuleType:
    """The script; its folder is on the path by now."""
    pytest.importorskip("torch", reason="the comparison learns with torch")
    return importlib.import_module("few_measurements")


def test_the_least_and_the_most_are_measured(few: ModuleType) -> None:
    every = few.steps()
    assert len(every) == 54
    operations = [graph.operations for graph, _ in every]
    known = few.chosen(every, 8)
    assert len(known) == 8
    assert {int(np.argmin(operations)), int(np.argmax(operations))} <= set(known)
    assert np.isfinite(few.features(every)).all()


def test_a_known_device_that_is_twice_as_slow_is_foreseen(few: ModuleType) -> None:
    every = few.steps()
    made = few.made_devices(every, 5, 3)
    assert (made > 0).all() and np.array_equal(made, few.made_devices(every, 5, 3))
    known = few.chosen(every, 10)
    foreseen = few.nearest(made, 2 * made[4][known], known)
    np.testing.assert_allclose(foreseen, 2 * made[4])
    assert few.errors_of(foreseen, 2 * made[4], known) == pytest.approx((0.0, 1.0))


def test_learning_foresees_better_than_not_learning(few: ModuleType) -> None:
    every = few.steps()
    inputs, times = few.features(every), few.made_devices(every, 12, 0)
    known = few.chosen(every, 10)
    raw, taught = (few.Help(inputs, times, known, episodes, 0) for episodes in (0, 60))
    errors = [
        np.mean([few.errors_of(one.foreseen(t[known]), t, known)[0] for t in times])
        for one in (raw, taught)
    ]
    assert errors[1] < 0.7 * errors[0]
