"""The quantizers we compare with must be worth comparing with."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from pliant.bits import ErrorFeedback

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from bits_peers import Peer

METHODS = ["rtn", "gptq", "awq", "hqq"]


def problem(columns=160):
    random = np.random.default_rng(columns)
    weight_OI = (0.02 * random.standard_t(5, (24, columns))).astype(np.float32)
    inputs_NI = np.cumsum(random.normal(size=(600, columns)), axis=1)
    return weight_OI, inputs_NI.T @ inputs_NI / len(inputs_NI)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("columns", [160, 64, 33])
def test_more_bits_are_nearer_and_many_are_near(method, columns):
    weight_OI, moment_II = problem(columns)
    feedback = ErrorFeedback.of(moment_II)
    errors = []
    for bits in (2, 3, 4, 8):
        rounded_OI = Peer(method, bits, 64).quantize(weight_OI, feedback)
        assert rounded_OI.shape == weight_OI.shape
        difference_OI = rounded_OI - weight_OI
        errors.append(np.einsum("oi,ij,oj->", difference_OI, moment_II, difference_OI))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-3 * errors[0]


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_every_peer_beats_rounding_to_nearest_at_what_it_minimizes(bits):
    weight_OI, moment_II = problem()
    feedback = ErrorFeedback.of(moment_II)
    difference = {
        method: Peer(method, bits, 64).quantize(weight_OI, feedback) - weight_OI
        for method in METHODS
    }

    def at_output(found_OI):
        return np.einsum("oi,ij,oj->", found_OI, moment_II, found_OI)

    def on_diagonal(found_OI):
        return (np.square(found_OI) * moment_II.diagonal()).sum()

    assert at_output(difference["gptq"]) < 0.5 * at_output(difference["rtn"])
    assert on_diagonal(difference["awq"]) <= on_diagonal(difference["rtn"])
    assert np.abs(difference["hqq"]).mean() < np.abs(difference["rtn"]).mean()


def test_effective_bits_count_scales_and_zero_points():
    assert Peer("rtn", 4, 64).effective_bits(128) == 4 + 20 / 64
    assert Peer("hqq", 2, 64).effective_bits(128) == 2.5
    # The last group is short and stores as much as a whole one.
    assert Peer("gptq", 3, 128).effective_bits(192) == 3 + 2 * 19 / 192
