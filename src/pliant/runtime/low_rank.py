"""Low-rank updates as the engine takes them: int8 codes with fp32 scales, made for one subnet.

`native/kernels/low_rank.h` is the law of the layout. int8 halves what a decoded token reads of the
factors; docs/lab_notes.md has what it costs in loss.

Shape suffixes: R ranks, O rows, I columns, G groups of 64 columns, T tiles of 32 rows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pliant import _native
from pliant.adapters import Factors
from pliant.bits import GROUP_COLUMNS, TILE_ROWS, ceil_div

_MOST = 127


class EncodedFactors(NamedTuple):
    """Codes and scales of an update of `rows` x `columns`."""

    a_RI: NDArray[np.int8]
    a_scale_RG: NDArray[np.float32]
    b_TR32: NDArray[np.int8]
    b_scale_O: NDArray[np.float32]
    rows: int
    columns: int

    def native(self) -> _native.LowRank:
        """What `Block.set_low_rank` takes; keeps these arrays."""
        return _native.LowRank(
            self.a_RI.ravel(), self.a_scale_RG.ravel(), self.b_TR32.ravel(), self.b_scale_O,
            len(self.a_RI), self.rows, self.columns,
        )  # fmt: skip


def encode_factors(factors: Factors) -> EncodedFactors:
    """Round an update: A by rank and group of columns, B by row.

    Each rank's magnitude is first moved from B to A, where every rank has scales of its own, so
    that the entries of a row of B are alike.
    """
    a_RI, b_OR = factors
    rank, columns = a_RI.shape
    size_R = np.abs(b_OR).max(axis=0)
    size_R = np.where(size_R > 0, size_R, np.float32(1))
    groups, tiles = ceil_div(columns, GROUP_COLUMNS), ceil_div(len(b_OR), TILE_ROWS)
    padded_RI = np.zeros((rank, groups * GROUP_COLUMNS), np.float32)
    padded_RI[:, :columns] = a_RI * size_R[:, None]
    padded_OR = np.zeros((tiles * TILE_ROWS, rank), np.float32)
    padded_OR[: len(b_OR)] = b_OR / size_R
    code_RGI, scale_RG = _rounded(padded_RI.reshape(rank, groups, GROUP_COLUMNS))
    code_OR, scale_O = _rounded(padded_OR)
    tiled = code_OR.reshape(tiles, TILE_ROWS, rank).transpose(0, 2, 1)
    return EncodedFactors(
        code_RGI.reshape(rank, -1), scale_RG, np.ascontiguousarray(tiled), scale_O,
        len(b_OR), columns,
    )  # fmt: skip


def decode_factors(encoded: EncodedFactors) -> Factors:
    """The factors that the engine computes with."""
    rank = len(encoded.a_RI)
    wide_RI = encoded.a_RI.astype(np.float32) * encoded.a_scale_RG.repeat(GROUP_COLUMNS, axis=1)
    code_OR = encoded.b_TR32.transpose(0, 2, 1).reshape(-1, rank)
    b_OR = code_OR.astype(np.float32) * encoded.b_scale_O[:, None]
    return Factors(wide_RI[:, : encoded.columns], b_OR[: encoded.rows])


def _rounded(
    values: NDArray[np.float32],
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Codes of the last axis and their scales, largest magnitude / 127; zeros have scale 0."""
    scale = np.abs(values).max(axis=-1) / np.float32(_MOST)
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale > 0)
    codes = np.clip(np.rint(values * inverse[..., None]), -_MOST, _MOST)
    return codes.astype(np.int8), scale
