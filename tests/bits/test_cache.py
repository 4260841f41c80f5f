"""Formats of caches: their bytes, and how far codes are from what they stand for.

Shape suffixes: N entries, D channels.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pliant.bits.cache import (
    CACHE_BITS,
    CACHE_GROUP,
    CACHE_UNIT,
    CacheFormat,
    round_keys,
    round_values,
)
from pliant.errors import UsageError

HALF = 2.0**-11  # half the spacing of fp16 at 1


@given(st.sampled_from([2, 3, 4]), st.integers(1, 70), st.floats(-50, 50), st.integers(0, 99))
def test_codes_are_within_half_a_step(bits: int, channels: int, mean: float, seed: int) -> None:
    """Half a step of the group's own range, and the rounding of scale and minimum to fp16."""
    x_ND = np.random.default_rng(seed).normal(mean, 3, (CACHE_UNIT, channels)).astype(np.float32)
    half_ND = x_ND.astype(np.float16).astype(np.float32)
    for axis, rounded_ND in ((0, round_keys(x_ND, bits)), (1, round_values(x_ND, bits))):
        for begin in range(0, x_ND.shape[axis], CACHE_GROUP):
            group = half_ND.take(range(begin, min(begin + CACHE_GROUP, x_ND.shape[axis])), axis)
            found = rounded_ND.take(range(begin, begin + group.shape[axis]), axis)
            span = group.max(axis, keepdims=True) - group.min(axis, keepdims=True)
            # A scale rounded down leaves the top of the range up to span * HALF short.
            bound = span * (0.5 / (2**bits - 1) + 2 * HALF) + 1e-6 * np.abs(group).max()
            assert np.all(np.abs(found - group) <= bound)


def test_more_bits_are_nearer() -> None:
    x_ND = np.random.default_rng(1).normal(0, 1, (CACHE_UNIT, 48)).astype(np.float32)
    for rounding in (round_keys, round_values):
        errors = [float(np.square(rounding(x_ND, bits) - x_ND).mean()) for bits in (2, 3, 4)]
        assert errors[0] > 3 * errors[1] > 9 * errors[2]


def test_a_loud_channel_spoils_only_values() -> None:
    """Why keys are rounded by channel: one channel of keys that is large in all entries."""
    x_ND = np.random.default_rng(2).normal(0, 1, (CACHE_UNIT, 32)).astype(np.float32)
    x_ND[:, 5] *= 40
    quiet = [channel for channel in range(32) if channel != 5]
    by_channel, by_entry = (
        np.square(rounding(x_ND, 2) - x_ND)[:, quiet].mean()
        for rounding in (round_keys, round_values)
    )
    assert by_entry > 5 * by_channel


def test_equal_values_are_exact() -> None:
    for rounding in (round_keys, round_values):
        np.testing.assert_array_equal(rounding(np.full((64, 40), 0.75, np.float32), 2), 0.75)


def test_effective_bits_count_scales() -> None:
    found = {bits: CacheFormat(bits=bits).effective_bits(64) for bits in CACHE_BITS.values()}
    assert found == {32: 32, 16: 16, 8: 8.5, 4: 5, 3: 4, 2: 3}
    assert CacheFormat(bits=2).effective_bits(48) > 3  # the second group of channels is half full


def test_reading_counts_codes_and_rows() -> None:
    form = CacheFormat(bits=4, window=64)
    unit, row = form.unit_bytes(32), form.row_bytes(32)
    assert (form.folded(127), form.folded(128), form.folded(200)) == (0, 64, 128)
    assert form.read_bytes(32, 0, 201) == 2 * unit + 73 * row
    assert form.read_bytes(32, 70, 201) == unit + 73 * row
    assert form.read_bytes(32, 150, 201) == 51 * row
    assert CacheFormat(bits=16).read_bytes(32, 5, 9) == 4 * 64


@pytest.mark.parametrize("fields", [{"bits": 5}, {"bits": 4, "window": 32}, {"window": -64}])
def test_formats_that_cannot_be(fields: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="asked for; use"):
        CacheFormat(**fields)


def test_names() -> None:
    for name, bits in CACHE_BITS.items():
        assert CacheFormat.of_type(name) == CacheFormat(bits=bits)
        assert CacheFormat(bits=bits).type == name
    with pytest.raises(UsageError, match="use one of float32"):
        CacheFormat.of_type("int7")
