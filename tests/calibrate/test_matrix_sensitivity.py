"""What one matrix costs: against its definition, falling with planes, the same when streamed."""

import numpy as np
import pytest
import torch

from pliant.bits import ShiftAddCodec, UniformCodec
from pliant.calibrate import (
    decode_matrix,
    matrix_sensitivities,
    output_errors,
    separate_sensitivities,
)
from pliant.calibrate.matrix_sensitivity import SEQUENCES, offered_counts
from pliant.spec import BLOCK_MATRICES

CODEC = UniformCodec()


def windows(count=8, length=16):
    return torch.from_numpy(np.random.default_rng(3).integers(0, 101, (count, length)))


def encoder(net, codec=CODEC):
    return lambda name: codec.encode(net.weights[name].numpy())


@pytest.mark.parametrize("tied", [False, True])
def test_it_is_the_divergence_of_a_model_with_one_matrix_rounded(make_supernet, tied):
    net = make_supernet(tied_embeddings=tied, num_blocks=3)
    costs = matrix_sensitivities(net, windows(), CODEC, encoder(net))
    matrices = [name for name, shape in net.spec.tensors().items() if len(shape) == 2]
    assert set(costs) == set(matrices)
    tokens_BT = windows()[:SEQUENCES]
    expected_BTV = torch.log_softmax(net(tokens_BT), -1)
    for name in ("blocks.1.up", "blocks.2.o", "embedding", matrices[1]):
        rounded = torch.from_numpy(decode_matrix(CODEC, encoder(net)(name), 3))
        other = type(net)(net.spec, {**net.weights, name: rounded}, net.shape)
        found_BTV = torch.log_softmax(other(tokens_BT), -1)
        kl = (expected_BTV.exp() * (expected_BTV - found_BTV)).sum(-1).mean()
        assert costs[name][3] == pytest.approx(float(kl), rel=1e-3, abs=1e-7)


def test_more_planes_cost_less_by_both_measures(make_supernet):
    net = make_supernet(num_blocks=2)
    by_loss = matrix_sensitivities(net, windows(), CODEC, encoder(net))
    by_output = output_errors(net, windows(), CODEC, encoder(net))
    assert set(by_output) == {f"blocks.{b}.{m}" for b in range(2) for m in BLOCK_MATRICES}
    for costs in (by_loss, by_output):
        for found in costs.values():
            assert list(found) == [2, 3, 4, 5, 6, 8]
            assert found[2] > found[4] > found[8] >= 0
    # Two planes leave a quarter of a step of 1/4 of the range; a relative error near 0.1.
    assert all(0.01 < found[2] < 1 for found in by_output.values())


def test_matrices_made_for_each_number_of_planes(make_supernet):
    """Those of blocks, each in place of the dense one."""
    net = make_supernet(num_blocks=2)

    def separately(codec, counts):
        made = {n: encoder(net, codec.with_planes(n)) for n in counts}
        return separate_sensitivities(
            net, windows(), codec, lambda name: {n: encode(name) for n, encode in made.items()}
        )

    whole = matrix_sensitivities(net, windows(), CODEC, encoder(net))
    costs = separately(CODEC, (8,))
    assert set(costs) == {f"blocks.{b}.{m}" for b in range(2) for m in BLOCK_MATRICES}
    for name, found in costs.items():
        assert found[8] == pytest.approx(whole[name][8], rel=1e-3, abs=1e-8)
    signs = separately(ShiftAddCodec(), (1, 4))
    assert all(found[1] > found[4] > 0 for found in signs.values())


def test_a_matrix_with_fewer_planes_is_measured_at_those(make_supernet):
    net = make_supernet(num_blocks=2)
    few = {"blocks.0.q": 1, "blocks.1.up": 3}
    costs = matrix_sensitivities(
        net, windows(), CODEC,
        lambda name: encoder(net, UniformCodec(few.get(name, 8)))(name),
    )  # fmt: skip
    assert list(costs["blocks.0.q"]) == [1]
    assert list(costs["blocks.1.up"]) == [2, 3]
    assert list(costs["blocks.1.down"]) == [2, 3, 4, 5, 6, 8]


@pytest.mark.parametrize(
    ("planes", "counts"), [(1, (1,)), (2, (2,)), (7, (2, 3, 4, 5, 6, 7)), (8, (2, 3, 4, 5, 6, 8))]
)
def test_counts_end_with_all_that_is_stored(planes, counts):
    assert offered_counts(planes) == counts
