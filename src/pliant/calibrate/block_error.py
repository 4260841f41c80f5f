"""How far each block's output is from the dense one, read at some numbers of planes.

Shape suffixes: B sequences, T tokens, D hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from pliant.bits import Codec
from pliant.calibrate.loss import BATCH_SIZE, calibration_tokens, embed, run_block
from pliant.calibrate.sensitivity import EncodedSource, Overlay, decode_matrix
from pliant.errors import VerificationError
from pliant.measurement import Progress, silent
from pliant.models import Supernet
from pliant.spec import BLOCK_MATRICES

#: Relative errors by block and plane count.
BlockErrors = dict[int, dict[int, float]]


@torch.no_grad()
def block_errors(
    supernet: Supernet,
    tokens_BT: torch.Tensor,
    codec: Codec,
    encoded: EncodedSource,
    counts: Sequence[int],
    progress: Progress = silent,
) -> BlockErrors:
    """The error of every block's output at each of `counts` planes, behind the blocks before it.

    Mean square of the difference to the dense hidden state over the mean square of what the dense
    block adds, so an error of 1 is as large as what the block does; six digits. Hidden states of
    all sequences are held once dense, twice while a block runs, and once for each count; weights of
    one block are decoded at a time. `VerificationError` where an output is not finite.
    """
    tokens_BT = calibration_tokens(supernet, tokens_BT)
    dense_BTD = embed(supernet, tokens_BT, BATCH_SIZE)
    states = {count: dense_BTD.clone() for count in counts}
    found: BlockErrors = {}
    num_blocks = supernet.spec.num_blocks
    for block in range(num_blocks):
        progress("block errors", block, num_blocks)
        target_BTD = run_block(supernet, block, dense_BTD, BATCH_SIZE)
        added = _mean_square(target_BTD - dense_BTD)
        dense_BTD = target_BTD
        names = [f"blocks.{block}.{matrix}" for matrix in BLOCK_MATRICES]
        stored = {name: encoded(name) for name in names}
        found[block] = {}
        for count, hidden_BTD in states.items():
            decoded = {
                name: torch.from_numpy(decode_matrix(codec, matrix, count)).to(dense_BTD)
                for name, matrix in stored.items()
            }
            rounded = supernet.sharing(Overlay(supernet.weights, decoded))
            run_block(rounded, block, hidden_BTD, BATCH_SIZE, out=hidden_BTD)
            error = _mean_square(hidden_BTD - dense_BTD) / max(added, 1e-30)
            if not math.isfinite(error):
                raise VerificationError(
                    f"The output of block {block} is not finite at {count} planes; the "
                    "checkpoint's weights overflow when rounded."
                )
            found[block][count] = float(f"{error:.6g}")
    progress("block errors", num_blocks, num_blocks)
    return found


def _mean_square(x_BTD: torch.Tensor) -> float:
    return float(x_BTD.square().mean(dtype=torch.float64))
