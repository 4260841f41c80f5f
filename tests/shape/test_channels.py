"""Statistics merge like one big batch, whatever the batches were."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pliant.errors import DataError
from pliant.shape import ChannelStatistics


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    cuts=st.lists(st.integers(0, 57), max_size=6),
    offset=st.sampled_from([0.0, 1.0, -300.0]),
)
def test_merging_does_not_depend_on_the_batches(seed: int, cuts: list[int], offset: float) -> None:
    inputs_NI = np.random.default_rng(seed).normal(offset, 1.7, (57, 5))
    whole = ChannelStatistics.of(inputs_NI)
    edges = [0, *sorted(cuts), 57]
    merged = ChannelStatistics.empty(5)
    for start, stop in itertools.pairwise(edges):
        merged = merged.merge(ChannelStatistics.of(inputs_NI[start:stop]))
    assert merged.count == 57
    # Each merge rounds a few times; deviations cancel against the square of the mean.
    scale = 57 * (offset**2 + 9)
    np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-13, atol=1e-14)
    np.testing.assert_allclose(merged.absolute, whole.absolute, rtol=1e-13)
    np.testing.assert_allclose(merged.deviation, whole.deviation, rtol=1e-12, atol=1e-15 * scale)


def test_moments_are_those_of_the_definition() -> None:
    inputs_NI = np.random.default_rng(3).normal(2, 1, (41, 3)).astype(np.float32)
    statistics = ChannelStatistics.of(inputs_NI)
    exact_NI = inputs_NI.astype(np.float64)
    np.testing.assert_allclose(statistics.variance, exact_NI.var(axis=0, ddof=1), rtol=1e-12)
    np.testing.assert_allclose(statistics.norm, np.linalg.norm(exact_NI, axis=0), rtol=1e-12)
    np.testing.assert_allclose(statistics.absolute, np.abs(exact_NI).mean(axis=0), rtol=1e-12)


def test_a_variance_needs_two_tokens() -> None:
    with pytest.raises(DataError, match="2 tokens"):
        _ = ChannelStatistics.of(np.ones((1, 3))).variance
    assert ChannelStatistics.empty(3).merge(ChannelStatistics.empty(3)).count == 0
