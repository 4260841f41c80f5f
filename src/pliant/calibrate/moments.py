"""Second moments of what enters every matrix of a block: the Hessians of error feedback.

Shape suffixes: B sequences, T tokens, I channels, N tokens of several sequences.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from pliant.calibrate.loss import BATCH_SIZE, calibration_tokens, embed, run_block
from pliant.errors import DataError
from pliant.models import Supernet
from pliant.spec import ModelSpec

#: The matrices that read what enters the first of them.
SHARED_INPUTS = {"q": ("q", "k", "v"), "o": ("o",), "gate": ("gate", "up"), "down": ("down",)}
#: fp64 copies of activations are made of at most this many values at a time.
_VALUES_AT_ONCE = 2**22


class MomentStream:
    """Hidden states of all calibration sequences on their way through the dense blocks.

    Blocks must be passed in order, by `advance` or, where nothing has to be known, `skip`. The
    supernet needs the weights of one block at a time; moments are summed in fp64 where it lies.
    """

    def __init__(
        self, supernet: Supernet, tokens_BT: torch.Tensor, batch_size: int = BATCH_SIZE
    ) -> None:
        tokens_BT = calibration_tokens(supernet, tokens_BT)
        check_enough(supernet.spec, tokens_BT.numel())
        self._supernet = supernet
        self._batch_size = batch_size
        self._hidden_BTD = embed(supernet, tokens_BT, batch_size)

    @torch.no_grad()
    def advance(self, block: int) -> dict[str, NDArray[np.float64]]:
        """Run a block; the mean of x xᵀ, fp64 `[I, I]`, by the keys of `SHARED_INPUTS`."""
        sums: dict[str, torch.Tensor] = {}

        def observe(name: str, inputs_BTI: torch.Tensor) -> None:
            inputs_NI = inputs_BTI.flatten(0, 1)
            rows = max(1, _VALUES_AT_ONCE // inputs_NI.shape[1])
            for part_NI in inputs_NI.split(rows):
                wide_NI = part_NI.double()
                if name in sums:
                    sums[name].addmm_(wide_NI.T, wide_NI)
                else:
                    sums[name] = wide_NI.T @ wide_NI

        for hidden_BTD in self._hidden_BTD.split(self._batch_size):
            hidden_BTD.copy_(self._supernet.block(block, hidden_BTD, observe=observe))
        num_tokens = self._hidden_BTD.shape[0] * self._hidden_BTD.shape[1]
        return {name: (total.div_(num_tokens)).cpu().numpy() for name, total in sums.items()}

    def skip(self, block: int) -> None:
        """Run a block without looking at it."""
        run_block(self._supernet, block, self._hidden_BTD, self._batch_size, out=self._hidden_BTD)


def check_enough(spec: ModelSpec, num_tokens: int) -> None:
    """`DataError` where moments of `num_tokens` tokens cannot have full rank."""
    needed = max(spec.hidden_size, spec.num_heads * spec.head_dim, spec.ffn_size)
    if num_tokens < needed:
        raise DataError(
            f"Calibration has {num_tokens} tokens; error feedback needs {needed} at least, as many "
            "as the widest matrix has columns. Give a longer text, or round to nearest."
        )


def moment_bytes(spec: ModelSpec) -> int:
    """Bytes of the fp64 moments of one block and of factorizing the largest of them."""
    widths = (spec.hidden_size, spec.num_heads * spec.head_dim, spec.hidden_size, spec.ffn_size)
    # The damped copy, its factor, the inverse, its triangle, and two that the library works in.
    return 8 * (sum(width**2 for width in widths) + 6 * max(widths) ** 2)
