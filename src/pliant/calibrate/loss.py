"""Held-out token loss of a supernet, in nats, summed in fp64.

Shape suffixes: B sequences, T tokens, D hidden size, N predicted tokens, V vocabulary.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from pliant.errors import DataError
from pliant.models import Supernet
from pliant.shape import SubnetShape

#: Sequences that run at once where nothing else is asked for.
BATCH_SIZE = 8
#: Most bytes of logits held at once: with 150,000 words a row of them is 0.6 MB.
_LOGIT_BYTES = 64 * 2**20


def calibration_tokens(
    supernet: Supernet, tokens_BT: torch.Tensor | NDArray[np.integer]
) -> torch.Tensor:
    """Token windows as int64 `[B, T]` where the supernet lies; `DataError` if it cannot run them.

    Windows need two tokens or more, no more than the context, and ids within the vocabulary.
    """
    spec = supernet.spec
    tokens = torch.as_tensor(tokens_BT).to(supernet.weights["embedding"].device, torch.int64)
    if tokens.ndim != 2 or not len(tokens) or tokens.shape[1] < 2:
        raise DataError(
            f"Calibration needs windows [B, T] of two tokens or more; got {list(tokens.shape)}."
        )
    if tokens.shape[1] > spec.max_context:
        raise DataError(
            f"Calibration windows of {tokens.shape[1]} tokens; the model's context is "
            f"{spec.max_context}, so use shorter ones."
        )
    low, high = (int(bound) for bound in torch.aminmax(tokens))
    if low < 0 or high >= spec.vocab_size:
        raise DataError(
            f"Token ids lie between {low} and {high}, the vocabulary has {spec.vocab_size}; "
            "the tokenizer belongs to another model."
        )
    return tokens


@torch.no_grad()
def embed(supernet: Supernet, tokens_BT: torch.Tensor, batch_size: int) -> torch.Tensor:
    """The hidden states `[B, T, D]` that enter the first block, as one tensor."""
    return torch.cat([supernet.embed(batch_BT) for batch_BT in tokens_BT.split(batch_size)])


@torch.no_grad()
def run_block(
    supernet: Supernet,
    block: int,
    hidden_BTD: torch.Tensor,
    batch_size: int,
    widths: tuple[int, int] | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """All sequences through one block, a batch at a time, into `out` (default: a new tensor).

    `widths` are its KV groups and neurons, by default all. `out` may be `hidden_BTD` itself. So a
    block's weights are needed once for all sequences, which counts when they are read from disk.
    """
    result_BTD = torch.empty_like(hidden_BTD) if out is None else out
    parts = zip(hidden_BTD.split(batch_size), result_BTD.split(batch_size), strict=True)
    for input_BTD, output_BTD in parts:
        output_BTD.copy_(supernet.block(block, input_BTD, *(widths or ())))
    return result_BTD


@torch.no_grad()
def loss_sum(supernet: Supernet, hidden_BTD: torch.Tensor, tokens_BT: torch.Tensor) -> float:
    """Summed loss of predicting each token but the first, nats, from the last hidden state.

    Logits are made a few rows at a time, so memory does not grow with the vocabulary times T.
    """
    hidden_ND = hidden_BTD[:, :-1].flatten(0, 1)
    target_N = tokens_BT[:, 1:].flatten()
    rows = max(1, _LOGIT_BYTES // (4 * supernet.spec.vocab_size))
    total = 0.0
    for part_ND, part_N in zip(hidden_ND.split(rows), target_N.split(rows), strict=True):
        logits_NV = supernet.logits(part_ND[None])[0]
        losses_N = functional.cross_entropy(logits_NV, part_N, reduction="none")
        total += float(losses_N.double().sum())
    return total


def mean_loss(
    supernet: Supernet,
    tokens_BT: torch.Tensor,
    shape: SubnetShape | None = None,
    batch_size: int = BATCH_SIZE,
) -> float:
    """Mean loss per predicted token of `shape` (default: all that is stored), nats.

    Hidden states of all sequences are carried from block to block.
    """
    hidden_BTD = run_blocks(supernet, tokens_BT, batch_size, shape)
    return final_loss(supernet, hidden_BTD, tokens_BT)


def run_blocks(
    supernet: Supernet,
    tokens_BT: torch.Tensor,
    batch_size: int,
    shape: SubnetShape | None = None,
) -> torch.Tensor:
    """Hidden states `[B, T, D]` behind the last block of `shape` (default: all that is stored)."""
    shape = shape or supernet.shape
    with torch.no_grad():
        supernet = supernet.at(shape)
    hidden_BTD = embed(supernet, tokens_BT, batch_size)
    for block, groups, neurons in zip(shape.blocks, shape.groups, shape.neurons, strict=True):
        run_block(supernet, block, hidden_BTD, batch_size, (groups, neurons), out=hidden_BTD)
    return hidden_BTD


def final_loss(supernet: Supernet, hidden_BTD: torch.Tensor, tokens_BT: torch.Tensor) -> float:
    """Mean loss per predicted token, nats, of the hidden state that left the last block."""
    return loss_sum(supernet, hidden_BTD, tokens_BT) / num_predicted(tokens_BT)


def num_predicted(tokens_BT: torch.Tensor) -> int:
    """Tokens whose loss is counted: all but the first of each sequence."""
    return int(tokens_BT.shape[0] * (tokens_BT.shape[1] - 1))
