"""Mixtures: shares, epochs without repetition, and independence of the past."""

from __future__ import annotations

import numpy as np
import pytest

from pliant.data import Mixture, Source
from pliant.errors import DataError

LENGTH = 8


def mixture(seed: int = 0) -> Mixture:
    return Mixture(
        [
            Source("low", np.arange(1016, dtype=np.uint16), 0.75),
            Source("high", np.arange(10_000, 11_000, dtype=np.uint16), 0.25),
        ],
        seed,
    )


def test_shares_are_kept_in_every_batch() -> None:
    windows = mixture().windows(step=5, count=16, length=LENGTH)
    assert windows.shape == (16, LENGTH)
    assert (windows[:, 0] < 10_000).sum() == 12
    assert (np.diff(windows, axis=1) == 1).all()


def test_an_epoch_repeats_nothing_and_the_next_is_shifted() -> None:
    steps = (1016 // LENGTH - 1) // 3  # three windows of the first source in each
    drawn = [mixture().windows(step, 4, LENGTH)[:3, 0] for step in range(2 * steps)]
    first, second = np.concatenate(drawn[:steps]), np.concatenate(drawn[steps:])
    assert np.unique(first).size == np.unique(second).size == 3 * steps
    assert len({int(start) % LENGTH for start in first}) == 1
    assert int(first[0]) % LENGTH != int(second[0]) % LENGTH


def test_a_step_does_not_depend_on_those_before_it() -> None:
    running = mixture()
    for step in range(20):
        latest = running.windows(step, 8, LENGTH)
    np.testing.assert_array_equal(latest, mixture().windows(19, 8, LENGTH))
    assert (latest != mixture(seed=1).windows(19, 8, LENGTH)).any()


def test_bad_mixtures_are_refused() -> None:
    with pytest.raises(DataError, match="sum to 1"):
        Mixture([Source("a", np.arange(100, dtype=np.uint16), 0.5)], 0)
    short = Mixture([Source("tiny", np.arange(10, dtype=np.uint16), 1.0)], 0)
    with pytest.raises(DataError, match="source tiny has 10 tokens"):
        short.windows(0, 1, LENGTH)
