"""Dedicated quantizers that the nested file is compared with: one width each, on the same weights.

All are asymmetric uniform grids with an fp16 scale and a zero point of `bits` bits for each group
of a row (HQQ: fp16), written here after their papers. Each gives the fp32 weights it stands for.
Shape suffixes: O rows, I columns, G groups, C columns of a group.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pliant.bits import ErrorFeedback

Float = NDArray[np.float64]
#: AWQ tries this many exponents of the activation size between 0 and 1.
_AWQ_EXPONENTS = 12
#: HQQ: rounds, norm, and the growth of its penalty (as its authors publish them).
_HQQ_ROUNDS, _HQQ_NORM, _HQQ_BETA, _HQQ_GROWTH = 20, 0.7, 10.0, 1.01


@dataclass(frozen=True)
class Peer:
    """A quantizer by name: width, group, and bits a weight for scale and zero point."""

    method: str
    bits: int
    group: int

    @property
    def name(self) -> str:
        """Such as `gptq-3-g64`."""
        return f"{self.method}-{self.bits}-g{self.group}"

    def effective_bits(self, columns: int) -> float:
        """All bits stored a weight of rows of `columns`, of which the last group may be short."""
        zero = 16 if self.method == "hqq" else self.bits
        return self.bits + (16 + zero) * -(-columns // self.group) / columns

    def quantize(self, weight_OI: NDArray[np.float32], feedback: ErrorFeedback) -> Float:
        """The weights that the codes stand for."""
        return _METHODS[self.method](weight_OI.astype(np.float64), feedback, self)


def round_to_nearest(weight_OI: Float, _: ErrorFeedback, peer: Peer) -> Float:
    """The range of each group, rounded to nearest."""
    weight_OGC = _grouped(weight_OI, peer.group)
    scale_OG1, zero_OG1 = _range_grid(weight_OGC, peer.bits)
    return _ungrouped(_on_grid(weight_OGC, scale_OG1, zero_OG1, peer.bits), weight_OI.shape[1])


def gptq(weight_OI: Float, feedback: ErrorFeedback, peer: Peer) -> Float:
    """Error feedback column by column, the grid of a group fixed when it begins (2210.17323)."""
    rounded_OI = np.empty_like(weight_OI)
    grid = _range_grid(_grouped(weight_OI, peer.group), peer.bits)

    def round_column(column: int, target_KO: Float) -> Float:
        scale_O1, zero_O1 = (part[:, column // peer.group] for part in grid)
        rounded_OI[:, column] = _on_grid(target_KO[0][:, None], scale_O1, zero_O1, peer.bits)[:, 0]
        return rounded_OI[None, :, column]

    feedback.sweep(weight_OI, round_column, 1)
    return rounded_OI


def awq(weight_OI: Float, feedback: ErrorFeedback, peer: Peer) -> Float:
    """Columns scaled by a power of their activation before rounding (2306.00978).

    The factors are taken as folded into what comes before, at no bits. The exponent is the one
    with the least error by the diagonal of the moments.
    """
    size_I = np.sqrt(feedback.importance_I)
    best, best_error = weight_OI, np.inf
    for exponent in np.linspace(0, 1, _AWQ_EXPONENTS):
        factor_I = np.maximum(size_I, 1e-4 * size_I.max()) ** exponent
        factor_I /= np.sqrt(factor_I.max() * factor_I.min())
        rounded_OI = round_to_nearest(weight_OI * factor_I, feedback, peer) / factor_I
        error = float((np.square(rounded_OI - weight_OI) * feedback.importance_I).sum())
        if error < best_error:
            best, best_error = rounded_OI, error
    return best


def hqq(weight_OI: Float, _: ErrorFeedback, peer: Peer) -> Float:
    """Zero points by half-quadratic splitting of an lp norm, p < 1, without data (HQQ, 2023)."""
    weight_OGC = _grouped(weight_OI, peer.group)
    scale_OG1, zero_OG1 = _range_grid(weight_OGC, peer.bits)
    zero_OG1 = zero_OG1.astype(np.float64)
    beta, best_error, best = _HQQ_BETA, np.inf, weight_OGC
    for _round in range(_HQQ_ROUNDS):
        code_OGC = np.clip(np.round(weight_OGC / scale_OG1 + zero_OG1), 0, 2**peer.bits - 1)
        rounded_OGC = (code_OGC - zero_OG1) * scale_OG1
        difference_OGC = weight_OGC - rounded_OGC
        error = float(np.abs(difference_OGC).mean())
        if error >= best_error:
            break
        best, best_error = rounded_OGC, error
        size_OGC = np.abs(difference_OGC)
        shrink_OGC = np.maximum(size_OGC, 1e-12) ** (_HQQ_NORM - 1) / beta
        sparse_OGC = np.sign(difference_OGC) * np.maximum(size_OGC - shrink_OGC, 0)
        target_OGC = code_OGC - (weight_OGC - sparse_OGC) / scale_OG1
        zero_OG1 = target_OGC.mean(axis=2, keepdims=True).astype(np.float16).astype(np.float64)
        beta *= _HQQ_GROWTH
    return _ungrouped(best, weight_OI.shape[1])


_METHODS: dict[str, Callable[[Float, ErrorFeedback, Peer], Float]] = {
    "rtn": round_to_nearest, "gptq": gptq, "awq": awq, "hqq": hqq,
}  # fmt: skip


def _range_grid(weight_OGC: Float, bits: int) -> tuple[Float, Float]:
    """fp16 scale and whole zero point of each group, so that its range and 0 are on the grid."""
    low_OG1 = np.minimum(weight_OGC.min(axis=2, keepdims=True), 0)
    high_OG1 = np.maximum(weight_OGC.max(axis=2, keepdims=True), 0)
    scale_OG1 = ((high_OG1 - low_OG1) / (2**bits - 1)).astype(np.float16).astype(np.float64)
    scale_OG1 = np.where(scale_OG1 > 0, scale_OG1, 1.0)
    return scale_OG1, np.clip(np.round(-low_OG1 / scale_OG1), 0, 2**bits - 1)


def _on_grid(weight: Float, scale: Float, zero: Float, bits: int) -> Float:
    code = np.clip(np.round(weight / scale) + zero, 0, 2**bits - 1)
    rounded: Float = (code - zero) * scale
    return rounded


def _grouped(weight_OI: Float, group: int) -> Float:
    """`[O, G, C]`; a short last group is filled with its last column, which widens no range."""
    missing = -weight_OI.shape[1] % group
    filled_OI = np.pad(weight_OI, ((0, 0), (0, missing)), mode="edge")
    return filled_OI.reshape(len(weight_OI), -1, group)


def _ungrouped(weight_OGC: Float, columns: int) -> Float:
    rounded: Float = weight_OGC.reshape(len(weight_OGC), -1)[:, :columns]
    return rounded
