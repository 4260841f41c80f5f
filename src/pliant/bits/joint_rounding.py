"""Codes of which every prefix is good: one choice for all levels, each with error feedback.

A code is chosen once and read at every number of planes, so what is best for 2 planes may not be
for 4. Each level k carries its own compensated weights through the sweep of `ErrorFeedback`, and
the code of a weight is the one with the smallest

    sum over k of  decay^(k - 2) · ((target_k - value_k(code)) / step_k)²

Steps make levels comparable; the decay gives the coarse ones, where the loss is, the first word.
Scales are chosen by the same sum without feedback. What was measured is in
docs/how_it_works/bits.md. Shape suffixes: K levels, O rows, G groups, C columns of a group, N
candidates of a code.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pliant.bits.feedback import ErrorFeedback, Float
from pliant.bits.layout import GROUP_COLUMNS
from pliant.bits.plan import MAX_PLANES

#: Weight of a level against the one with a plane less. At 1 the finest levels forbid any gain for
#: the coarse ones; at 0.25 8 planes lose 1 %; measured on three models (lab notes).
DECAY = 0.5
#: Scales tried, in units of max|w| / 128.
_STRETCHES = (1.035, 1.02, 1.01, 1.0, 0.96, 0.92, 0.88, 0.84, 0.8, 0.75, 0.7, 0.65, 0.6, 0.5, 0.4)
#: A code is looked for among the neighbours of the nearest prefix of this many planes.
_SEARCHED_PLANES = 4
_NEIGHBOURS = np.arange(-2, 3)[:, None]
_SMALLEST = float(np.finfo(np.float16).smallest_subnormal)
_LARGEST = float(np.finfo(np.float16).max)


class JointRounding:
    """Codes and scales of a few rows, all prefixes of `planes` planes together."""

    def __init__(self, planes: int, feedback: ErrorFeedback) -> None:
        levels = np.arange(min(2, planes), planes + 1)
        self._shift_K11 = (MAX_PLANES - levels)[:, None, None]
        self._step_K11 = np.exp2(self._shift_K11)
        self._weight_K = DECAY ** (levels - levels[0]).astype(np.float64)
        self._cost_K11 = self._weight_K[:, None, None] / np.square(self._step_K11)
        self._feedback = feedback
        self._width = 1 << (MAX_PLANES - min(_SEARCHED_PLANES, planes))

    def encode(
        self, weight_OGC: NDArray[np.float32], columns: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
        """Codes uint8 `[O, G * 64]` and scales fp16 `[O, G]` of padded rows of finite weights."""
        rows = len(weight_OGC)
        scale_OG = self._scales(weight_OGC, columns)
        wide_OG = scale_OG.astype(np.float64)
        inverse_OG = np.divide(1, wide_OG, out=np.zeros_like(wide_OG), where=wide_OG > 0)
        code_OI = np.zeros((rows, weight_OGC[0].size), np.uint8)

        def round_column(column: int, target_KO: Float) -> Float:
            group = column // GROUP_COLUMNS
            code_O = self._codes(target_KO * inverse_OG[:, group])
            code_OI[:, column] = np.where(wide_OG[:, group] > 0, code_O, 0)
            return self._values(code_O[None])[:, 0] * wide_OG[:, group]

        weight_OI = weight_OGC.reshape(rows, -1)[:, :columns]
        self._feedback.sweep(weight_OI, round_column, len(self._weight_K))
        return code_OI, scale_OG

    def _codes(self, position_KO: Float) -> NDArray[np.int64]:
        """The best code of each target, given in units of the scale for every level."""
        fine_O = np.clip(np.floor(position_KO[-1] + 128), 0, 255).astype(np.int64)
        low_NO = np.clip(fine_O // self._width + _NEIGHBOURS, 0, 256 // self._width - 1)
        low_NO *= self._width
        code_NO = np.clip(fine_O, low_NO, low_NO + self._width - 1)
        error_KNO = self._values(code_NO) - position_KO[:, None]
        cost_NO = (self._cost_K11 * np.square(error_KNO)).sum(axis=0)
        best_O = cost_NO.argmin(axis=0)
        code_O: NDArray[np.int64] = code_NO[best_O, np.arange(len(best_O))]
        return code_O

    def _values(self, code_NO: NDArray[np.int64]) -> Float:
        """What each level reads of codes, in units of the scale: fp64 `[K, N, O]`."""
        prefix_KNO = code_NO[None] >> self._shift_K11
        values_KNO: Float = self._step_K11 * (prefix_KNO + 0.5) - 128
        return values_KNO

    def _scales(self, weight_OGC: NDArray[np.float32], columns: int) -> NDArray[np.float16]:
        """The scale of each row and group with the smallest weighted error, rounded to fp16.

        Errors of a level are in units of those of the first candidate, which clips nothing; a
        column counts as its inputs do.
        """
        largest_OG = np.abs(weight_OGC).max(axis=2).astype(np.float64)
        importance_GC = np.zeros(weight_OGC.shape[1:])
        importance_GC.reshape(-1)[:columns] = self._feedback.importance_I
        best_OG = np.full(largest_OG.shape, np.inf)
        scale_OG = _half(largest_OG * (_STRETCHES[0] / 128))
        reference_KOG: Float | None = None
        for stretch in _STRETCHES:
            tried_OG = _half(largest_OG * (stretch / 128))
            error_KOG = self._errors(weight_OGC, tried_OG, importance_GC)
            if reference_KOG is None:
                reference_KOG = np.maximum(error_KOG, np.finfo(np.float64).tiny)
            # Weights near the end of fp32 have infinite errors and keep their first scale.
            with np.errstate(invalid="ignore"):
                total_OG = np.einsum("k,kog->og", self._weight_K, error_KOG / reference_KOG)
            is_better_OG = total_OG < best_OG
            best_OG = np.where(is_better_OG, total_OG, best_OG)
            scale_OG = np.where(is_better_OG, tried_OG, scale_OG)
        return scale_OG

    def _errors(
        self, weight_OGC: NDArray[np.float32], scale_OG: NDArray[np.float16], importance_GC: Float
    ) -> Float:
        """Squared error of each level, columns by importance, `[K, O, G]`."""
        wide_OG1 = scale_OG.astype(np.float32)[:, :, None]
        inverse_OG1 = np.divide(1, wide_OG1, out=np.zeros_like(wide_OG1), where=wide_OG1 > 0)
        position_OGC = weight_OGC * inverse_OG1
        importance_GC = importance_GC.astype(np.float32)
        error_KOG = np.empty((len(self._weight_K), *scale_OG.shape))
        for level, step in enumerate(self._step_K11.ravel().astype(np.float32)):
            most = np.float32(128) / step
            value_OGC = np.clip(np.floor(position_OGC / step), -most, most - 1)
            value_OGC = (value_OGC + np.float32(0.5)) * step - position_OGC
            error_KOG[level] = np.einsum("ogc,ogc,gc->og", value_OGC, value_OGC, importance_GC)
        squared: Float = error_KOG * np.square(wide_OG1[:, :, 0].astype(np.float64))
        return squared


def _half(scale_OG: Float) -> NDArray[np.float16]:
    """fp16 near the given scale, and never 0 where it is not."""
    bounded_OG = np.where(scale_OG > 0, np.clip(scale_OG, _SMALLEST, _LARGEST), 0)
    return bounded_OG.astype(np.float16)
