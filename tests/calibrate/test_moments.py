"""Moments of inputs: against their definition, resumed, and refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pliant.calibrate import SHARED_INPUTS, MomentStream, moment_bytes
from pliant.errors import DataError

INPUTS = tuple(SHARED_INPUTS)


def windows(count=8, length=16):
    return torch.from_numpy(np.random.default_rng(3).integers(0, 101, (count, length)))


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_they_are_the_mean_of_outer_products(make_supernet, batch_size):
    net = make_supernet()
    stream = MomentStream(net, windows(), batch_size)
    hidden_BTD = net.embed(windows())
    for block in range(3):
        seen = {}
        hidden_BTD = net.block(block, hidden_BTD, observe=seen.__setitem__)
        moments = stream.advance(block)
        assert set(moments) == set(INPUTS)
        for name in INPUTS:
            inputs_NI = seen[name].flatten(0, 1).double().numpy()
            expected_II = inputs_NI.T @ inputs_NI / len(inputs_NI)
            assert moments[name].dtype == np.float64
            np.testing.assert_allclose(moments[name], expected_II, rtol=1e-4, atol=1e-5)


def test_a_skipped_block_leaves_the_same_hidden_states(make_supernet):
    net = make_supernet()
    first, second = MomentStream(net, windows()), MomentStream(net, windows())
    first.advance(0)
    second.skip(0)
    expected, found = first.advance(1), second.advance(1)
    for name in INPUTS:
        np.testing.assert_array_equal(found[name], expected[name])


def test_q_is_what_k_and_v_see_too():
    matrices = [matrix for shared in SHARED_INPUTS.values() for matrix in shared]
    assert matrices == ["q", "k", "v", "o", "gate", "up", "down"]


def test_too_short_a_text_is_refused_with_what_is_needed(make_supernet):
    with pytest.raises(DataError, match="69 tokens; error feedback needs 70 at least"):
        MomentStream(make_supernet(), windows(3, 23))
    MomentStream(make_supernet(), windows(5, 14))


def test_memory_counts_the_moments_of_a_block(make_supernet):
    spec = make_supernet().spec
    assert moment_bytes(spec) >= 8 * (2 * 36**2 + 60**2 + 70**2)
