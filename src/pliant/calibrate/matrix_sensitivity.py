"""What rounding one matrix alone costs, by the whole model's output and by its own.

Shape suffixes: B sequences, T tokens, D hidden size, N predicted tokens, V vocabulary, O rows,
I columns, S perturbed models times B.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from pliant.bits import Codec, EncodedMatrix
from pliant.calibrate.loss import BATCH_SIZE, calibration_tokens, embed, run_block
from pliant.calibrate.moments import SHARED_INPUTS, MomentStream
from pliant.calibrate.sensitivity import EncodedSource, Overlay, decode_matrix
from pliant.measurement import Progress, silent
from pliant.models import Supernet
from pliant.spec import BLOCK_MATRICES

#: Sequences that are looked at: KL needs few tokens, since no luck of the next token is in it.
SEQUENCES = 4
#: Plane counts of a matrix that are offered to an allocation.
COUNTS = (2, 3, 4, 5, 6, 8)
_LOGIT_BYTES = 32 * 2**20

#: Cost of each matrix by plane count.
Costs = dict[str, dict[int, float]]
#: A matrix by its name as each number of planes stands for it.
Decoded = Callable[[str], list[tuple[int, torch.Tensor]]]
#: A matrix by its name, encoded anew for each number of planes.
SeparateSource = Callable[[str], Mapping[int, EncodedMatrix]]


def offered_counts(planes: int) -> tuple[int, ...]:
    """Plane counts that are measured where `planes` are stored."""
    return tuple(sorted({planes, *(count for count in COUNTS if count < planes)}))


@torch.no_grad()
def matrix_sensitivities(
    supernet: Supernet,
    tokens_BT: torch.Tensor,
    codec: Codec,
    encoded: EncodedSource,
    progress: Progress = silent,
) -> Costs:
    """KL of the dense model to the one with a single matrix rounded, nats per token.

    On the first `SEQUENCES` of held-out windows. By name; tied embeddings are rounded as embedding
    and head at once. All perturbed states of a block travel together, so each block's weights are
    asked for once for every block before it.
    """
    counts = offered_counts(codec.planes)

    def decoded(name: str) -> list[tuple[int, torch.Tensor]]:
        return _decoded(supernet, codec, encoded(name), counts)

    names = ["embedding"] if supernet.spec.tied_embeddings else ["embedding", "head"]
    return _sensitivities(supernet, tokens_BT, decoded, names, progress)


@torch.no_grad()
def separate_sensitivities(
    supernet: Supernet,
    tokens_BT: torch.Tensor,
    codec: Codec,
    encoded: SeparateSource,
    progress: Progress = silent,
) -> Costs:
    """As `matrix_sensitivities`, of block matrices encoded anew for each number of planes.

    For codecs whose prefixes of planes are not good. `encoded` is asked block by block.
    """

    def decoded(name: str) -> list[tuple[int, torch.Tensor]]:
        found = encoded(name).items()
        return [pair for n, matrix in found for pair in _decoded(supernet, codec, matrix, [n])]

    return _sensitivities(supernet, tokens_BT, decoded, [], progress)


def _sensitivities(
    supernet: Supernet,
    tokens_BT: torch.Tensor,
    decoded: Decoded,
    outside: Sequence[str],
    progress: Progress,
) -> Costs:
    """Of the matrices `outside` all blocks, then block by block."""
    tokens_BT = calibration_tokens(supernet, tokens_BT)[:SEQUENCES]
    num_blocks = supernet.spec.num_blocks
    hidden_BTD = embed(supernet, tokens_BT, BATCH_SIZE)
    states = [hidden_BTD]
    for block in range(num_blocks):
        states.append(run_block(supernet, block, states[-1], BATCH_SIZE))
    costs: Costs = {}
    progress("matrices", 0, num_blocks + 1)
    for name in outside:
        costs[name] = {}
        for count, matrix in decoded(name):
            changed = _with(supernet, name, matrix)
            last_BTD = states[-1]
            if name == "embedding":
                last_BTD = embed(changed, tokens_BT, BATCH_SIZE)
                for block in range(num_blocks):
                    run_block(supernet, block, last_BTD, BATCH_SIZE, out=last_BTD)
            costs[name][count] = _divergence(supernet, states[-1], changed, last_BTD)
    for block in range(num_blocks):
        progress("matrices", 1 + block, num_blocks + 1)
        costs |= _block_costs(supernet, block, states, decoded)
    progress("matrices", num_blocks + 1, num_blocks + 1)
    return costs


def _block_costs(
    supernet: Supernet,
    block: int,
    states: Sequence[torch.Tensor],
    decoded: Decoded,
) -> Costs:
    """Every matrix of one block at every count."""
    keys, perturbed = [], []
    for matrix in BLOCK_MATRICES:
        name = f"blocks.{block}.{matrix}"
        for count, weight_OI in decoded(name):
            keys.append((name, count))
            changed = _with(supernet, name, weight_OI)
            perturbed.append(run_block(changed, block, states[block], BATCH_SIZE))
    hidden_STD = torch.cat(perturbed)
    del perturbed
    for later in range(block + 1, supernet.spec.num_blocks):
        run_block(supernet, later, hidden_STD, BATCH_SIZE, out=hidden_STD)
    costs: Costs = {}
    for (name, count), hidden_BTD in zip(keys, hidden_STD.split(len(states[0])), strict=True):
        found = _divergence(supernet, states[-1], supernet, hidden_BTD)
        costs.setdefault(name, {})[count] = found
    return costs


def output_errors(
    supernet: Supernet,
    tokens_BT: torch.Tensor,
    codec: Codec,
    encoded: EncodedSource,
) -> Costs:
    """The Hessian proxy: error of each block matrix's output, relative to its mean square.

    tr (W - W') H (W - W')ᵀ / tr W H Wᵀ with the moments H of its inputs in the dense model; it
    needs one pass and knows nothing of what comes after the matrix.
    """
    stream = MomentStream(supernet, tokens_BT)
    counts, costs = offered_counts(codec.planes), Costs()
    for block in range(supernet.spec.num_blocks):
        for shared, moment_II in stream.advance(block).items():
            for name in (f"blocks.{block}.{matrix}" for matrix in SHARED_INPUTS[shared]):
                weight_OI = supernet.weights[name].double().numpy()
                whole = _energy(weight_OI, moment_II)
                costs[name] = {
                    count: _energy(rounded_OI.double().numpy() - weight_OI, moment_II) / whole
                    for count, rounded_OI in _decoded(supernet, codec, encoded(name), counts)
                }
    return costs


def _energy(weight_OI: NDArray[np.float64], moment_II: NDArray[np.float64]) -> float:
    return float(np.einsum("oi,oi->", weight_OI @ moment_II, weight_OI))


def _decoded(
    supernet: Supernet, codec: Codec, stored: EncodedMatrix, counts: Sequence[int]
) -> list[tuple[int, torch.Tensor]]:
    """At each of `counts`; at all of its planes in place of those that it has not."""
    device = supernet.weights["embedding"].device
    there = sorted({min(count, len(stored.planes)) for count in counts})
    return [(n, torch.from_numpy(decode_matrix(codec, stored, n)).to(device)) for n in there]


def _with(supernet: Supernet, name: str, weight_OI: torch.Tensor) -> Supernet:
    """The model with one matrix replaced; all others are looked up where they were."""
    return supernet.sharing(Overlay(supernet.weights, {name: weight_OI}))


def _divergence(
    dense: Supernet, dense_BTD: torch.Tensor, changed: Supernet, changed_BTD: torch.Tensor
) -> float:
    """Mean KL(dense ‖ changed) per token, nats, of two last hidden states, a few rows at a time.

    To six digits, which do not depend on how threads share out the sums.
    """
    rows = max(1, _LOGIT_BYTES // (8 * dense.spec.vocab_size))
    parts = zip(dense_BTD.flatten(0, 1).split(rows), changed_BTD.flatten(0, 1).split(rows),
                strict=True)  # fmt: skip
    total = 0.0
    for first_ND, second_ND in parts:
        first_NV = torch.log_softmax(dense.logits(first_ND[None])[0], -1)
        second_NV = torch.log_softmax(changed.logits(second_ND[None])[0], -1)
        total += float((first_NV.exp() * (first_NV - second_NV)).sum(dtype=torch.float64))
    return float(f"{max(total, 0.0) / (dense_BTD.shape[0] * dense_BTD.shape[1]):.6g}")
