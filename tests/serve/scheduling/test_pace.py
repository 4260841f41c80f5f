"""The pace finds the line of a machine and follows it."""

from __future__ import annotations

import random

import pytest

from pliant.serve.scheduling import StepPace


def test_it_finds_the_line() -> None:
    pace = StepPace(50_000, 1, 1000)
    for tokens in (1, 7, 30, 100, 3):
        pace.observe(tokens, 10_000 + 400 * tokens)
    assert pace.line == pytest.approx((10_000, 400))
    assert pace.tokens() == 100
    assert pace.nanoseconds(10) == pytest.approx(14_000)


def test_it_follows_a_machine_that_slows_down() -> None:
    pace, noise = StepPace(50_000, 1, 1000), random.Random(0)
    for slope in (400, 800):
        for _ in range(300):
            tokens = noise.randint(1, 100)
            pace.observe(tokens, int((10_000 + slope * tokens) * noise.uniform(0.9, 1.1)))
    assert pace.tokens() == pytest.approx(50, rel=0.1)


def test_before_it_knows_and_at_its_bounds() -> None:
    pace = StepPace(50_000, 8, 64)
    assert (pace.tokens(), pace.nanoseconds(5)) == (64, 0)
    pace.observe(1, 10**9)
    assert pace.tokens() == 8
    assert pace.line == (0, 10**9)


def test_steps_that_are_all_alike_or_contradict_a_line() -> None:
    pace = StepPace(50_000, 1, 1000)
    for _ in range(20):
        pace.observe(10, 5_000)
    assert pace.line == pytest.approx((0, 500))
    pace.observe(1, 90_000)
    base, slope = pace.line
    assert base == 0
    assert slope > 0
