"""Compensated codes: valid planes, and better at the output than rounding to nearest."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from pliant.bits import CompensatedCodec, ErrorFeedback, UniformCodec, codecs
from pliant.bits.joint_rounding import JointRounding
from pliant.errors import CheckpointError

SIZES = [(1, 64), (33, 172), (64, 288), (5, 130), (1, 1)]


def problem(rows, columns, seed=0):
    random = np.random.default_rng([seed, rows, columns])
    weight_OI = (0.02 * random.standard_t(5, (rows, columns))).astype(np.float32)
    # Neighbouring inputs are alike, as the channels of trained models are.
    inputs_NI = np.cumsum(random.normal(size=(2 * columns + 50, columns)), axis=1)
    moment_II = inputs_NI.T @ inputs_NI / len(inputs_NI)
    return weight_OI, moment_II


def output_error(rounded_OI, weight_OI, moment_II):
    difference_OI = rounded_OI.astype(np.float64) - weight_OI
    return float(np.einsum("oi,ij,oj->", difference_OI, moment_II, difference_OI))


def test_codecs_that_can_be_compensated():
    assert isinstance(codecs["uniform"], CompensatedCodec)


@pytest.mark.parametrize("size", [size for size in SIZES if size[1] > 64])
@pytest.mark.parametrize("planes", [4, 8])
def test_every_prefix_loses_less_at_the_output(size, planes):
    weight_OI, moment_II = problem(*size)
    codec = UniformCodec(planes)
    nearest = codec.encode(weight_OI)
    compensated = codec.encode_compensated(weight_OI, ErrorFeedback.of(moment_II))
    for read in range(2, min(planes, 5) + 1):
        before = output_error(codec.decode(nearest, read), weight_OI, moment_II)
        after = output_error(codec.decode(compensated, read), weight_OI, moment_II)
        assert after < before, f"{read} planes"


@pytest.mark.parametrize("size", [(33, 172), (64, 288)])
def test_more_planes_never_hurt(size):
    weight_OI, moment_II = problem(*size)
    codec = UniformCodec()
    encoded = codec.encode_compensated(weight_OI, ErrorFeedback.of(moment_II))
    errors = [
        output_error(codec.decode(encoded, planes), weight_OI, moment_II) for planes in range(2, 9)
    ]
    assert all(after < before for before, after in pairwise(errors))


@pytest.mark.parametrize("planes", range(1, 9))
def test_the_chosen_code_is_the_best_of_all(planes):
    """With targets that differ by up to a quarter of a step, the short list holds the optimum."""
    rounding = JointRounding(planes, ErrorFeedback.of(np.eye(64)))
    random = np.random.default_rng(planes)
    levels = len(rounding._weight_K)
    position_KO = np.repeat(random.uniform(-140, 140, (1, 2000)), levels, axis=0)
    position_KO += random.uniform(-0.25, 0.25, position_KO.shape) * rounding._step_K11[:, 0]
    every_NO = np.repeat(np.arange(256)[:, None], 2000, axis=1)

    def cost(code_NO):
        error_KNO = rounding._values(code_NO) - position_KO[:, None]
        return (rounding._cost_K11 * error_KNO**2).sum(axis=0)

    found_O = cost(rounding._codes(position_KO)[None])[0]
    best_O = cost(every_NO).min(axis=0)
    # The finest bits are nearest to the finest target, not searched: a small part of the cost.
    assert found_O.sum() <= 1.05 * best_O.sum()


def test_padding_and_zero_groups_stay_zero():
    weight_OI, moment_II = problem(33, 172)
    weight_OI[:, 64:128] = 0
    encoded = UniformCodec().encode_compensated(weight_OI, ErrorFeedback.of(moment_II))
    decoded_OI = UniformCodec().decode(encoded, 8)
    assert not decoded_OI[:, 64:128].any()
    scales = encoded.scales.reshape(2, 3, 32).view(np.float16)
    assert not scales[1, :, 1:].any()
    assert (scales >= 0).all()


def test_rows_are_coded_independently_of_the_matrix_around_them(monkeypatch):
    weight_OI, moment_II = problem(70, 130)
    feedback = ErrorFeedback.of(moment_II)
    whole = UniformCodec().encode_compensated(weight_OI, feedback)
    monkeypatch.setattr("pliant.bits.uniform._COMPENSATED_WEIGHTS", 1)
    part = UniformCodec().encode_compensated(weight_OI[:32], feedback)
    for plane, plane_of_part in zip(whole.planes, part.planes, strict=True):
        np.testing.assert_array_equal(plane[: plane_of_part.size], plane_of_part)
    np.testing.assert_array_equal(whole.scales[: part.scales.size], part.scales)


@pytest.mark.parametrize("magnitude", [1e-38, 1e-9, 1.0, 1e6, 3e38])
def test_weights_of_any_size_give_finite_scales(magnitude):
    weight_OI, moment_II = problem(5, 130)
    weight_OI = np.float32(magnitude) * np.sign(weight_OI)
    with np.errstate(over="ignore"):
        encoded = UniformCodec().encode_compensated(weight_OI, ErrorFeedback.of(moment_II))
    scales = encoded.scales.view(np.float16)
    assert np.isfinite(scales).all()
    assert np.isfinite(UniformCodec().decode(encoded, 8)).all()


def test_not_finite_is_refused_by_name():
    weight_OI, moment_II = problem(5, 130)
    weight_OI[4, 129] = np.nan
    with pytest.raises(CheckpointError, match=r"blocks\.3\.up holds NaN"):
        UniformCodec().encode_compensated(weight_OI, ErrorFeedback.of(moment_II), "blocks.3.up")
