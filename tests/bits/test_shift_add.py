"""The shift-add codec: what its planes and scales say, and what feedback gains."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from pliant.bits import (
    CompensatedCodec,
    EncodedMatrix,
    ErrorFeedback,
    ShiftAddCodec,
    codecs,
    refused_codecs,
)
from pliant.bits.binary_coding import POWER_TERMS
from pliant.bits.shift_add import MOST_PLANES, num_powers
from pliant.errors import UsageError


def random_matrix(rows, columns, seed=0):
    random = np.random.default_rng([seed, rows, columns])
    return (0.02 * random.standard_t(5, (rows, columns))).astype(np.float32)


def moment_of(columns, seed=0):
    random = np.random.default_rng(seed)
    mixing = random.normal(size=(columns, columns)) * np.exp(random.normal(size=columns))
    return mixing.T @ mixing / columns


def cost(weight_OI, decoded_OI, moment_II):
    error_OI = decoded_OI.astype(np.float64) - weight_OI
    return float(((error_OI @ moment_II) * error_OI).sum())


def test_a_matrix_by_hand():
    """Four rows share scales; the signs and sums are what the formula says."""
    weight_OI = np.full((4, 64), 0.75, np.float32)
    weight_OI[1] = -0.75
    weight_OI[2] = 0.25
    weight_OI[3] = -0.25
    encoded = ShiftAddCodec(2).encode(weight_OI)
    np.testing.assert_array_equal(ShiftAddCodec(2).decode(encoded, 2), weight_OI)
    scales = encoded.scales.view(np.float16).reshape(MOST_PLANES, 8)
    assert scales[:, 0].tolist() == [0.5, 0.25, 0, 0]
    assert not scales[:, 1:].any()
    assert encoded.bits(0, 4, 64)[:, 0].tolist() == [True, False, True, False]
    assert encoded.bits(1, 4, 64)[:, 0].tolist() == [True, False, False, True]
    first = ShiftAddCodec(2).decode(encoded, 1)
    np.testing.assert_array_equal(first[:, 0], [0.5, -0.5, 0.5, -0.5])


def test_bits_are_those_of_the_planes_and_as_many_scales_as_uniform():
    for planes in (1, 2, 3, 4):
        encoded = ShiftAddCodec(planes).encode(random_matrix(64, 256))
        assert encoded.effective_bits == planes + 16 / 64
        assert num_powers(encoded.scales).max() <= POWER_TERMS


def test_without_correlation_feedback_changes_nothing():
    weight_OI = random_matrix(40, 172)
    feedback = ErrorFeedback.of(np.eye(172))
    plain = ShiftAddCodec(3).encode(weight_OI)
    swept = ShiftAddCodec(3).encode_compensated(weight_OI, feedback)
    for plane, again in zip(plain.planes, swept.planes, strict=True):
        np.testing.assert_array_equal(plane, again)
    np.testing.assert_array_equal(plain.scales, swept.scales)


@pytest.mark.parametrize("planes", [1, 2, 3, 4])
def test_feedback_loses_less_at_the_output(planes):
    codec, weight_OI, moment_II = ShiftAddCodec(planes), random_matrix(33, 172), moment_of(172)
    plain = codec.decode(codec.encode(weight_OI), planes)
    encoded = codec.encode_compensated(weight_OI, ErrorFeedback.of(moment_II))
    assert codec.fault(encoded) is None
    swept = codec.decode(encoded, planes)
    assert cost(weight_OI, swept, moment_II) < 0.8 * cost(weight_OI, plain, moment_II)


def test_more_planes_lose_less_at_the_output():
    weight_OI, moment_II = random_matrix(32, 128), moment_of(128)
    feedback = ErrorFeedback.of(moment_II)
    costs = []
    for planes in (1, 2, 3, 4):
        codec = ShiftAddCodec(planes)
        decoded_OI = codec.decode(codec.encode_compensated(weight_OI, feedback), planes)
        costs.append(cost(weight_OI, decoded_OI, moment_II))
    assert all(more < 0.6 * fewer for fewer, more in itertools.pairwise(costs))


def test_a_scale_that_is_no_sum_of_three_powers_is_found():
    codec, encoded = codecs["shift-add"], ShiftAddCodec(2).encode(random_matrix(33, 64))
    scales = encoded.scales.copy()
    scales[0] = np.float16(43).view(np.uint16)
    broken = EncodedMatrix(33, 64, encoded.planes, scales)
    assert codec.fault(broken) == "a scale that is no sum of 3 powers of two"
    # Scales of planes that were left out stay, and are not padding.
    whole = ShiftAddCodec(4).encode(random_matrix(33, 64))
    assert codec.fault(EncodedMatrix(33, 64, whole.planes[:2], whole.scales)) is None


def test_what_it_is_and_what_is_refused():
    codec = codecs["shift-add"]
    assert isinstance(codec, CompensatedCodec)
    assert (codec.form, codec.nested, codec.planes) == ("signs", False, 4)
    with pytest.raises(UsageError, match="5 planes asked for; the codec shift-add makes 1 to 4"):
        codec.with_planes(5)
    assert "rotation" in refused_codecs["shift-add-acc"]


def test_many_rows_are_coded_in_runs(monkeypatch):
    weight_OI = random_matrix(100, 70)
    whole = ShiftAddCodec(2).encode(weight_OI)
    feedback = ErrorFeedback.of(moment_of(70))
    swept = ShiftAddCodec(2).encode_compensated(weight_OI, feedback)
    monkeypatch.setattr("pliant.bits.shift_add._ROWS_AT_ONCE", 32)
    monkeypatch.setattr("pliant.bits.shift_add._COMPENSATED_WEIGHTS", 40 * 70)
    runs = ShiftAddCodec(2).encode(weight_OI)
    again = ShiftAddCodec(2).encode_compensated(weight_OI, feedback)
    # Products of other sizes may differ in the last bit, and then a sign here and there.
    differ = swept.scales != again.scales
    assert differ.mean() < 0.01
    for plane, again in zip(whole.planes, runs.planes, strict=True):
        np.testing.assert_array_equal(plane, again)
    np.testing.assert_array_equal(whole.scales, runs.scales)
