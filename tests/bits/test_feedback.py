"""Error feedback: the sweep against its definition, and every bad moment."""

from __future__ import annotations

import numpy as np
import pytest

from pliant.bits import ErrorFeedback
from pliant.errors import DataError


def correlated_inputs(columns, samples=400, seed=0):
    random = np.random.default_rng(seed)
    return random.normal(size=(samples, columns)) @ random.normal(size=(columns, columns))


def moment(inputs_NI):
    return inputs_NI.T @ inputs_NI / len(inputs_NI)


def round_to(step, codes_KOI):
    def round_column(column, target_KO):
        codes_KOI[:, :, column] = np.round(target_KO / step)
        return codes_KOI[:, :, column] * step

    return round_column


def swept(weight_OI, moment_II, step=0.5, levels=1):
    codes_KOI = np.zeros((levels, *weight_OI.shape))
    feedback = ErrorFeedback.of(moment_II)
    error_K = feedback.sweep(weight_OI, round_to(step, codes_KOI), levels)
    return codes_KOI * step, error_K


def test_without_correlation_it_is_rounding_to_nearest():
    weight_OI = np.random.default_rng(1).normal(size=(7, 150))
    rounded_KOI, _ = swept(weight_OI, np.diag(np.linspace(0.5, 2, 150)))
    np.testing.assert_array_equal(rounded_KOI[0], np.round(weight_OI / 0.5) * 0.5)


@pytest.mark.parametrize("columns", [1, 63, 64, 65, 150])
def test_it_loses_less_at_the_output_than_rounding_to_nearest(columns):
    weight_OI = np.random.default_rng(2).normal(size=(9, columns))
    moment_II = moment(correlated_inputs(columns))

    def output_error(rounded_OI):
        return np.trace((rounded_OI - weight_OI) @ moment_II @ (rounded_OI - weight_OI).T)

    rounded_KOI, _ = swept(weight_OI, moment_II)
    nearest = output_error(np.round(weight_OI / 0.5) * 0.5)
    assert output_error(rounded_KOI[0]) <= (1 if columns == 1 else 0.8) * nearest


def test_the_error_it_states_is_the_error_it_makes():
    weight_OI = np.random.default_rng(3).normal(size=(5, 130))
    moment_II = moment(correlated_inputs(130))
    rounded_KOI, error_K = swept(weight_OI, moment_II, levels=2)
    difference_OI = rounded_KOI[1] - weight_OI
    # The sweep minimizes over the damped moment, so that is what it counts.
    damped_II = moment_II + 0.01 * moment_II.diagonal().mean() * np.eye(130)
    expected = np.trace(difference_OI @ damped_II @ difference_OI.T)
    np.testing.assert_allclose(error_K, [expected, expected], rtol=1e-8)


def test_blocks_of_columns_change_nothing(monkeypatch):
    weight_OI = np.random.default_rng(4).normal(size=(5, 100))
    moment_II = moment(correlated_inputs(100))
    blocked_KOI, _ = swept(weight_OI, moment_II)
    monkeypatch.setattr("pliant.bits.feedback._BLOCK_COLUMNS", 100)
    at_once_KOI, _ = swept(weight_OI, moment_II)
    np.testing.assert_array_equal(blocked_KOI, at_once_KOI)


def test_the_factor_is_that_of_the_inverse():
    moment_II = moment(correlated_inputs(40))
    feedback = ErrorFeedback.of(moment_II)
    damped_II = moment_II + 0.01 * moment_II.diagonal().mean() * np.eye(40)
    product_II = feedback.factor_II.T @ feedback.factor_II @ damped_II
    np.testing.assert_allclose(product_II, np.eye(40), atol=1e-8)
    assert not np.tril(feedback.factor_II, -1).any()


def test_columns_that_were_never_active_are_rounded_to_nearest():
    inputs_NI = correlated_inputs(50)
    inputs_NI[:, [0, 7, 49]] = 0
    weight_OI = np.random.default_rng(5).normal(size=(4, 50))
    rounded_KOI, _ = swept(weight_OI, moment(inputs_NI))
    dead = [0, 7, 49]
    nearest_OI = np.round(weight_OI / 0.5) * 0.5
    np.testing.assert_array_equal(rounded_KOI[0][:, dead], nearest_OI[:, dead])
    assert (rounded_KOI[0] != nearest_OI).any()


def test_inputs_that_are_all_zero_are_rounded_to_nearest():
    weight_OI = np.random.default_rng(6).normal(size=(4, 50))
    rounded_KOI, _ = swept(weight_OI, np.zeros((50, 50)))
    np.testing.assert_array_equal(rounded_KOI[0], np.round(weight_OI / 0.5) * 0.5)


def test_a_singular_moment_is_damped_until_it_is_not():
    one_N1 = np.random.default_rng(7).normal(size=(100, 1))
    rank_one_II = moment(np.repeat(one_N1, 30, axis=1))
    assert ErrorFeedback.of(rank_one_II).damping == 0.01
    # A moment with a negative eigenvalue, as damaged sums may have, takes more.
    indefinite_II = rank_one_II - 0.05 * rank_one_II[0, 0] * np.eye(30)
    assert ErrorFeedback.of(indefinite_II).damping == pytest.approx(0.1)


def test_a_moment_that_no_damping_helps_is_refused():
    hopeless_II = np.full((10, 10), -1e9)
    np.fill_diagonal(hopeless_II, 1.0)
    with pytest.raises(DataError, match=r"inputs of blocks\.1\.o are singular even with 1000"):
        ErrorFeedback.of(hopeless_II, "blocks.1.o")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_moments_that_are_not_finite_are_refused_by_name(bad):
    moment_II = np.eye(3)
    moment_II[1, 2] = bad
    with pytest.raises(DataError, match=r"inputs of blocks\.4\.down .* not finite"):
        ErrorFeedback.of(moment_II, "blocks.4.down")
