"""Blocks that learn their codes: better at every level learned, close at the others, refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pliant.bits import UniformCodec
from pliant.calibrate import (
    BlockReconstruction,
    ReconstructionOptions,
    decode_matrix,
    reconstruction_bytes,
    reconstruction_seconds,
)
from pliant.calibrate.nested_weights import NestedWeights
from pliant.errors import DataError
from pliant.spec import BLOCK_MATRICES

CODEC = UniformCodec()
OPTIONS = ReconstructionOptions(steps=40, sequences=8)


def windows(count=8, length=16):
    return torch.from_numpy(np.random.default_rng(3).integers(0, 101, (count, length)))


def nearest(net, block, codec=CODEC):
    return {
        matrix: codec.unpack(codec.encode(net.weights[f"blocks.{block}.{matrix}"].numpy()))
        for matrix in BLOCK_MATRICES
    }


def decoded(codes, level, codec=CODEC):
    return {
        matrix: torch.from_numpy(decode_matrix(codec, codec.assemble(*pair), level))
        for matrix, pair in codes.items()
    }


def test_nested_weights_say_what_the_codec_decodes():
    weight_OI = torch.from_numpy(np.random.default_rng(0).normal(size=(40, 100)).astype("f"))
    codes, scales = CODEC.unpack(CODEC.encode(weight_OI.numpy()))
    nested = NestedWeights(weight_OI, codes, scales, 8, 4)
    for planes in (1, 2, 3, 4, 8):
        expected = CODEC.decode(CODEC.assemble(codes, scales), planes)
        found = nested.at(planes).detach().numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    for found, expected in zip(nested.codes(), (codes, scales), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_codes_keep_a_learned_prefix_and_lie_nearest_to_the_dense_weight_in_it():
    weight_OI = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 70)).astype("f"))
    codes, scales = CODEC.unpack(CODEC.encode(weight_OI.numpy()))
    nested = NestedWeights(weight_OI, codes, scales, 8, 4)
    with torch.no_grad():
        nested.positions_OGC += 16  # one step of four planes up
    moved, _ = nested.codes()
    expected = np.minimum(codes // 16 + 1, 15)
    np.testing.assert_array_equal(moved // 16, expected)
    is_within = codes // 16 < 15
    # From below, the nearest code of the step above is its first.
    np.testing.assert_array_equal(moved[is_within] % 16, 0)


def test_gradients_are_those_of_a_straight_line_and_of_lsq():
    weight_OI = torch.tensor([[0.9, -0.3, 0.05, 0.6]])
    codes, scales = CODEC.unpack(CODEC.encode(weight_OI.numpy()))
    nested = NestedWeights(weight_OI, codes, scales, 8, 2)
    nested.at(2).sum().backward()
    scale = float(scales[0, 0])
    position = nested.positions_OGC.detach()[0, 0, :4]
    gradient = nested.positions_OGC.grad[0, 0]
    torch.testing.assert_close(gradient[:4], torch.full((4,), scale))
    assert (gradient[4:] == 0).all()
    value = (torch.floor(position / 64) + 0.5) * 64
    torch.testing.assert_close(
        nested.stretch_OG1.grad.item(), (scale * (value - position)).sum().item()
    )


def test_learning_lowers_the_error_on_other_text_too(make_supernet):
    net = make_supernet()
    # Correlated inputs, as trained models have: without them errors cannot make up for each other.
    generator = torch.Generator().manual_seed(1)
    left, right = (torch.randn(shape, generator=generator) for shape in ((101, 6), (6, 36)))
    net.weights["embedding"] = left @ right
    start = nearest(net, 0)
    states = BlockReconstruction(net, windows(48), 8, OPTIONS)
    learned, error = states.learn(0, start)
    assert set(error.before) == set(error.after) == {2, 3, 4}
    assert all(error.after[level] < error.before[level] for level in error.before)
    hidden_BTD = net.embed(torch.from_numpy(np.random.default_rng(9).integers(0, 101, (8, 16))))
    expected_BTD = net.block(0, hidden_BTD)

    def distance(codes, level):
        weights = {**net.weights}
        weights |= {f"blocks.0.{m}": w for m, w in decoded(codes, level).items()}
        output_BTD = type(net)(net.spec, weights, net.shape).block(0, hidden_BTD)
        return float((output_BTD - expected_BTD).square().mean())

    for level in (2, 3, 4):
        assert distance(learned, level) < 0.9 * distance(start, level)
    assert distance(learned, 8) < 0.5 * distance(learned, 4)


def test_advancing_alone_leads_to_the_same_codes(make_supernet):
    net = make_supernet()
    few = ReconstructionOptions(steps=4)
    first, second = (BlockReconstruction(net, windows(), 8, few) for _ in range(2))
    learned, _ = first.learn(0, nearest(net, 0))
    stored = {level: decoded(learned, level) for level in first.levels}
    for states in (first, second):
        states.advance(0, stored)
    found, expected = (states.learn(1, nearest(net, 1))[0] for states in (second, first))
    for matrix in BLOCK_MATRICES:
        for one, other in zip(found[matrix], expected[matrix], strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(("planes", "levels"), [(1, (1,)), (2, (2,)), (3, (2, 3)), (6, (2, 3, 4))])
def test_of_few_planes_the_levels_there_are_learn(make_supernet, planes, levels):
    net, codec = make_supernet(), UniformCodec(planes)
    states = BlockReconstruction(net, windows(), planes, ReconstructionOptions(steps=3))
    learned, error = states.learn(0, nearest(net, 0, codec))
    assert states.levels == tuple(error.after) == levels
    assert all(sum(error.after.values()) <= sum(error.before.values()) for _ in levels)
    for codes, scales in learned.values():
        assert len(codec.assemble(codes, scales).planes) == planes


def test_a_matrix_of_zeros_stays_one(make_supernet):
    net = make_supernet()
    net.weights["blocks.0.up"] = torch.zeros_like(net.weights["blocks.0.up"])
    few = ReconstructionOptions(steps=4)
    learned, _ = BlockReconstruction(net, windows(), 8, few).learn(0, nearest(net, 0))
    assert not decoded(learned, 8)["up"].any()


def test_states_that_are_not_finite_are_refused(make_supernet):
    net = make_supernet()
    net.weights["embedding"][:] = float("inf")
    states = BlockReconstruction(net, windows(), 8, OPTIONS)
    with pytest.raises(DataError, match="hidden states of block 0"):
        states.learn(0, nearest(net, 0))


def test_bytes_and_seconds_are_foreseen(make_supernet):
    spec = make_supernet().spec
    few, many = (reconstruction_bytes(spec, 16, ReconstructionOptions(sequences=n)) for n in (2, 8))
    weights = sum(np.prod(spec.matrix_shape(m, 3, 70)) for m in BLOCK_MATRICES)
    assert 40 * weights < few <= many
    short, long = (
        reconstruction_seconds(spec, 8, 16, 8, ReconstructionOptions(steps=n)) for n in (10, 10**4)
    )
    assert 0 < short < long
