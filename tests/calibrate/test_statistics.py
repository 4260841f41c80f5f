"""Statistics are moments of what really enters `o` and `down`, whatever the batches."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from pliant.calibrate import (
    BlockStatistics,
    CalibrationStream,
    channel_statistics,
    gradient_statistics,
    mean_loss,
    stream_statistics,
)
from pliant.errors import DataError
from pliant.models import Supernet
from pliant.shape import ChannelStatistics

MakeSupernet = Callable[..., Supernet]


def close(one: ChannelStatistics, other: ChannelStatistics, tolerance: float) -> None:
    assert one.count == other.count
    for name in ("mean", "deviation", "absolute"):
        expected = getattr(other, name)
        scale = np.abs(expected).max()
        np.testing.assert_allclose(getattr(one, name), expected, atol=tolerance * scale)


def test_torch_and_numpy_give_the_same_moments() -> None:
    inputs_NI = torch.randn(301, 17, generator=torch.Generator().manual_seed(0)) * 3 + 50
    close(channel_statistics(inputs_NI), ChannelStatistics.of(inputs_NI.numpy()), 1e-14)


def test_statistics_are_of_the_inputs_of_the_matrices(
    make_supernet: MakeSupernet, tokens_BT: torch.Tensor
) -> None:
    supernet = make_supernet()
    seen: dict[str, torch.Tensor] = {}
    hidden_BTD = supernet.embed(tokens_BT)
    for block, found in enumerate(
        stream_statistics(supernet, tokens_BT, batch_size=len(tokens_BT))
    ):
        output_BTD = supernet.block(block, hidden_BTD, observe=seen.__setitem__)
        for statistics, name in ((found.attention, "o"), (found.mlp, "down")):
            inputs_NI = seen[name].flatten(0, 1).numpy()
            close(statistics, ChannelStatistics.of(inputs_NI), 1e-6)
        cosine = torch.nn.functional.cosine_similarity(hidden_BTD, output_BTD, dim=-1).mean()
        assert found.influence == pytest.approx(1 - float(cosine), abs=1e-6)
        assert 0 <= found.influence <= 2
        hidden_BTD = output_BTD
    assert block == supernet.spec.num_blocks - 1


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_statistics_do_not_depend_on_the_batch_size(
    make_supernet: MakeSupernet, tokens_BT: torch.Tensor, batch_size: int
) -> None:
    supernet = make_supernet()
    # In fp64 matrices; the norms of the decoder still round to fp32, hence not 1e-14.
    supernet.to(dtype=torch.float64)
    whole = stream_statistics(supernet, tokens_BT, batch_size=len(tokens_BT))
    parts = stream_statistics(supernet, tokens_BT, batch_size=batch_size)
    for one, other in zip(whole, parts, strict=True):
        close(one.attention, other.attention, 1e-7)
        close(one.mlp, other.mlp, 1e-7)
        assert one.influence == pytest.approx(other.influence, rel=1e-6)


def test_given_the_same_activations_the_split_changes_only_fp64_rounding() -> None:
    inputs_NI = torch.randn(97, 9, generator=torch.Generator().manual_seed(3)) + 4
    whole = channel_statistics(inputs_NI)
    for size in (1, 2, 5, 96):
        merged = ChannelStatistics.empty(9)
        for part_NI in inputs_NI.split(size):
            merged = merged.merge(channel_statistics(part_NI))
        close(merged, whole, 1e-13)


def test_a_block_that_does_nothing_has_no_influence(
    make_supernet: MakeSupernet, tokens_BT: torch.Tensor
) -> None:
    supernet = make_supernet()
    for matrix in ("o", "down"):
        supernet.weights[f"blocks.2.{matrix}"].zero_()
    influence = [found.influence for found in stream_statistics(supernet, tokens_BT)]
    assert influence[2] == pytest.approx(0, abs=1e-15)
    assert min(influence[:2] + influence[3:]) > 1e-3


def test_a_stream_needs_the_weights_of_one_block_at_a_time(
    make_supernet: MakeSupernet, tokens_BT: torch.Tensor
) -> None:
    supernet = make_supernet()

    def part(prefix: str) -> Supernet:
        kept = {name: w for name, w in supernet.weights.items() if name.startswith(prefix)}
        return Supernet(supernet.spec, kept, supernet.shape)

    stream = CalibrationStream(part("embedding"), tokens_BT)
    for block, whole in enumerate(stream_statistics(supernet, tokens_BT)):
        found: BlockStatistics = stream.advance(part(f"blocks.{block}."), block)
        close(found.mlp, whole.mlp, 0)
        assert found.influence == whole.influence


def test_gradients_are_the_slope_of_the_mean_loss(
    make_supernet: MakeSupernet, tokens_BT: torch.Tensor
) -> None:
    supernet = make_supernet()
    found = gradient_statistics(supernet, tokens_BT, batch_size=2)
    assert len(found) == 6
    for block, place, name in ((0, 0, "o"), (4, 1, "down")):
        gradient_OI = found[block][place].gradient
        assert gradient_OI is not None
        weight_OI = supernet.weights[f"blocks.{block}.{name}"]
        assert gradient_OI.shape == tuple(weight_OI.shape)
        step_OI = torch.from_numpy(gradient_OI) * (1e-2 / np.linalg.norm(gradient_OI))
        losses = []
        for sign in (1, -1):
            moved = {**supernet.weights, f"blocks.{block}.{name}": weight_OI + sign * step_OI}
            losses.append(mean_loss(Supernet.from_tensors(supernet.spec, moved), tokens_BT))
        slope = (losses[0] - losses[1]) / 2e-2
        assert slope == pytest.approx(np.linalg.norm(gradient_OI), rel=1e-2)
    assert not any(weight.requires_grad for weight in supernet.weights.values())


def test_progress_ends_where_it_said(make_supernet: MakeSupernet, tokens_BT: torch.Tensor) -> None:
    calls: list[tuple[str, int, int]] = []
    supernet = make_supernet()
    list(stream_statistics(supernet, tokens_BT, progress=lambda *call: calls.append(call)))
    assert calls[0] == ("statistics", 0, 6)
    assert calls[-1] == ("statistics", 6, 6)


@pytest.mark.parametrize(
    "tokens",
    [
        np.zeros((0, 8), np.int64),
        np.zeros((3, 1), np.int64),
        np.zeros(8, np.int64),
        np.zeros((1, 65), np.int64),
        np.full((1, 8), 101),
        np.full((1, 8), -1),
    ],
)
def test_windows_that_cannot_be_run_are_refused(
    make_supernet: MakeSupernet, tokens: np.ndarray
) -> None:
    with pytest.raises(DataError):
        next(iter(stream_statistics(make_supernet(), tokens)))
