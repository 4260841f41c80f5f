"""Calibration statistics, block by block: moments of the inputs of `o` and `down`, influence.

Hidden states of all sequences are carried from block to block, so each block's weights are needed
once and a model larger than memory can be calibrated.

Shape suffixes: B sequences, T tokens, D hidden size, I channels, N tokens of several sequences.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.nn import functional

from pliant.calibrate.loss import BATCH_SIZE, calibration_tokens, embed, num_predicted
from pliant.measurement import Progress, silent
from pliant.models import Supernet
from pliant.shape import ChannelStatistics

#: fp64 copies of activations are made of at most this many values at a time.
_VALUES_AT_ONCE = 2**22


@dataclass(frozen=True, eq=False)
class BlockStatistics:
    """What calibration learns of one block.

    `attention` is of the inputs of `o`, `mlp` of the inputs of `down`. `influence` is ShortGPT's
    block influence (arXiv 2403.03853): 1 - mean over tokens of the cosine between the block's input
    and output, from 0 (does nothing) to 2.
    """

    attention: ChannelStatistics
    mlp: ChannelStatistics
    influence: float


class CalibrationStream:
    """Hidden states of all calibration sequences on their way through the blocks.

    Holds one fp `[B, T, D]` tensor, overwritten by each block. Blocks must be passed in order; the
    supernet given to `advance` needs the weights of that block only.
    """

    def __init__(
        self,
        supernet: Supernet,
        tokens_BT: torch.Tensor,
        batch_size: int = BATCH_SIZE,
    ) -> None:
        tokens_BT = calibration_tokens(supernet, tokens_BT)
        self._batch_size = batch_size
        self.hidden_BTD = embed(supernet, tokens_BT, batch_size)

    @torch.no_grad()
    def advance(self, supernet: Supernet, block: int) -> BlockStatistics:
        """Run all sequences through a block of the dense model and say what was seen in it."""
        moments = _Moments()
        distance = 0.0
        for hidden_BTD in self.hidden_BTD.split(self._batch_size):
            output_BTD = supernet.block(block, hidden_BTD, observe=moments.observe)
            cosine_BT = functional.cosine_similarity(
                hidden_BTD.double(), output_BTD.double(), dim=-1
            )
            # Rounding puts the cosine of a vector with itself a few units beyond 1.
            distance += float((1 - cosine_BT.clamp(-1, 1)).sum())
            hidden_BTD.copy_(output_BTD)
        num_tokens = self.hidden_BTD.shape[0] * self.hidden_BTD.shape[1]
        return BlockStatistics(moments["o"], moments["down"], distance / num_tokens)


class _Moments(dict[str, ChannelStatistics]):
    """Statistics of the inputs of `o` and `down` by name, merged batch by batch."""

    def observe(self, name: str, inputs_BTI: torch.Tensor) -> None:
        if name not in _CONSUMERS:
            return
        inputs_NI = inputs_BTI.flatten(0, 1)
        rows = max(1, _VALUES_AT_ONCE // inputs_NI.shape[1])
        for part_NI in inputs_NI.split(rows):
            seen = channel_statistics(part_NI)
            self[name] = self[name].merge(seen) if name in self else seen


def channel_statistics(inputs_NI: torch.Tensor) -> ChannelStatistics:
    """Moments of one batch of inputs `[N, I]`, summed in fp64 on the device they lie on."""
    wide_NI = inputs_NI.double()
    mean_I = wide_NI.mean(dim=0)
    absolute_I = wide_NI.abs().mean(dim=0)
    deviation_I = (wide_NI - mean_I).square_().sum(dim=0)
    return ChannelStatistics(
        len(wide_NI),
        *(moment_I.cpu().numpy() for moment_I in (mean_I, deviation_I, absolute_I)),
    )


def stream_statistics(
    supernet: Supernet,
    tokens_BT: torch.Tensor,
    batch_size: int = BATCH_SIZE,
    progress: Progress = silent,
) -> Iterator[BlockStatistics]:
    """Statistics of each block in order, over calibration windows `[B, T]`.

    The result does not depend on `batch_size` beyond the rounding of the activations themselves.
    Raises `DataError` for windows the model cannot run.
    """
    num_blocks = supernet.spec.num_blocks
    stream = CalibrationStream(supernet, tokens_BT, batch_size)
    for block in range(num_blocks):
        progress("statistics", block, num_blocks)
        yield stream.advance(supernet, block)
    progress("statistics", num_blocks, num_blocks)


def gradient_statistics(
    supernet: Supernet,
    tokens_BT: torch.Tensor,
    batch_size: int = BATCH_SIZE,
    progress: Progress = silent,
) -> list[tuple[ChannelStatistics, ChannelStatistics]]:
    """Gradients of the mean loss (nats per token) for `o` and `down` of every block.

    What the Taylor score needs (LLM-Pruner, arXiv 2305.11627): a backward pass through the whole
    model, so all weights and the activations of a batch are in memory. The moments are left empty.
    """
    spec = supernet.spec
    tokens_BT = calibration_tokens(supernet, tokens_BT)
    names = [
        f"blocks.{block}.{matrix}" for block in range(spec.num_blocks) for matrix in _CONSUMERS
    ]
    leaves = {name: supernet.weights[name].detach().requires_grad_() for name in names}
    # By name of the spec: weights that are streamed from disk are not all listed.
    frozen = {name: supernet.weights[name].detach() for name in spec.tensors()}
    model = Supernet(spec, {**frozen, **leaves}, supernet.shape)
    done = 0
    for batch_BT in tokens_BT.split(batch_size):
        progress("gradients", done, len(tokens_BT))
        logits_BTV = model(batch_BT)[:, :-1]
        total = functional.cross_entropy(
            logits_BTV.flatten(0, 1), batch_BT[:, 1:].flatten(), reduction="sum"
        )
        (total / num_predicted(tokens_BT)).backward()
        done += len(batch_BT)
    progress("gradients", done, len(tokens_BT))
    found = [_with_gradient(leaf) for leaf in leaves.values()]
    return list(zip(found[::2], found[1::2], strict=True))


#: The matrices through which heads and neurons reach the residual stream.
_CONSUMERS = ("o", "down")


def _with_gradient(weight_OI: torch.Tensor) -> ChannelStatistics:
    assert weight_OI.grad is not None
    empty = ChannelStatistics.empty(weight_OI.shape[1])
    return empty.with_gradient(weight_OI.grad.float().cpu().numpy())
