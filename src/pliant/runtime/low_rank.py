"""Low-rank updates as the engine takes them: int8 codes with scales, made for one subnet.

`native/kernels/low_rank.h` is the law of the layout. int8 halves what a decoded token reads of the
factors; docs/lab_notes.md has what it costs in loss.

Shape suffixes: R ranks, K blocks of 8 ranks, O rows, I columns, P pairs of columns, G groups of 64
columns, T tiles of 32 rows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pliant import _native
from pliant.adapters import BLOCK_RANKS, Factors
from pliant.bits import GROUP_COLUMNS, TILE_ROWS, ceil_div

_MOST = 127
#: The largest entry of a rank of B: fp16 scales then reach from half a millionth of it to it.
_LARGEST_B = np.float32(2.0**10)


class EncodedFactors(NamedTuple):
    """Codes and scales of an update of `rows` x `columns` and some rank."""

    a_KP82: NDArray[np.int8]
    a_scale_KG8: NDArray[np.float32]
    b_TR32: NDArray[np.int8]
    b_scale_O: NDArray[np.float16]
    rank: int
    rows: int
    columns: int

    def native(self) -> _native.LowRank:
        """What `Block.set_low_rank` takes; keeps these arrays."""
        return _native.LowRank(
            self.a_KP82.ravel(), self.a_scale_KG8.ravel(), self.b_TR32.ravel(),
            self.b_scale_O.view(np.uint16), self.rank, self.rows, self.columns,
        )  # fmt: skip


def encode_factors(factors: Factors) -> EncodedFactors:
    """Round an update: A by rank and group of columns, B by row.

    Each rank's magnitude is first moved from B to A, where every rank has scales of its own, so
    that the entries of a row of B are alike.
    """
    a_RI, b_OR = factors
    rank, columns = a_RI.shape
    size_R = np.abs(b_OR).max(axis=0) / _LARGEST_B
    size_R = np.where(size_R > 0, size_R, np.float32(1))
    blocks, tiles = ceil_div(rank, BLOCK_RANKS), ceil_div(len(b_OR), TILE_ROWS)
    groups = ceil_div(columns, GROUP_COLUMNS)
    padded_RI = np.zeros((blocks * BLOCK_RANKS, groups * GROUP_COLUMNS), np.float32)
    padded_RI[:rank, :columns] = a_RI * size_R[:, None]
    padded_OR = np.zeros((tiles * TILE_ROWS, rank), np.float32)
    padded_OR[: len(b_OR)] = b_OR / size_R
    a_scale_RG = _scales(padded_RI.reshape(-1, groups, GROUP_COLUMNS))
    code_RI = _codes(padded_RI, a_scale_RG.repeat(GROUP_COLUMNS, axis=1))
    b_scale_O = _half_above(_scales(padded_OR))
    code_OR = _codes(padded_OR, b_scale_O.astype(np.float32)[:, None])
    paired = code_RI.reshape(blocks, BLOCK_RANKS, -1, 2).transpose(0, 2, 1, 3)
    scales = a_scale_RG.reshape(blocks, BLOCK_RANKS, groups).transpose(0, 2, 1)
    tiled = code_OR.reshape(tiles, TILE_ROWS, rank).transpose(0, 2, 1)
    return EncodedFactors(
        np.ascontiguousarray(paired), np.ascontiguousarray(scales), np.ascontiguousarray(tiled),
        b_scale_O, rank, len(b_OR), columns,
    )  # fmt: skip


def decode_factors(encoded: EncodedFactors) -> Factors:
    """The factors that the engine computes with."""
    rank, groups = encoded.rank, encoded.a_scale_KG8.shape[1]
    code_RI = encoded.a_KP82.transpose(0, 2, 1, 3).reshape(-1, groups * GROUP_COLUMNS)
    scale_RG = encoded.a_scale_KG8.transpose(0, 2, 1).reshape(-1, groups)
    wide_RI = code_RI.astype(np.float32) * scale_RG.repeat(GROUP_COLUMNS, axis=1)
    code_OR = encoded.b_TR32.transpose(0, 2, 1).reshape(-1, rank)
    b_OR = code_OR.astype(np.float32) * encoded.b_scale_O.astype(np.float32)[:, None]
    return Factors(wide_RI[:rank, : encoded.columns], b_OR[: encoded.rows])


def _scales(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Of the last axis: the largest magnitude / 127."""
    largest: NDArray[np.float32] = np.abs(values).max(axis=-1) / np.float32(_MOST)
    return largest


def _half_above(scale: NDArray[np.float32]) -> NDArray[np.float16]:
    """The lowest fp16 numbers that are not below, so that no code is beyond 127."""
    half = scale.astype(np.float16)
    return np.where(half < scale, np.nextafter(half, np.float16(np.inf)), half)


def _codes(values: NDArray[np.float32], scale: NDArray[np.float32]) -> NDArray[np.int8]:
    """Values by their scales, rounded; 0 where the scale is."""
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale > 0)
    return np.clip(np.rint(values * inverse), -_MOST, _MOST).astype(np.int8)
