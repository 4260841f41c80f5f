"""Planes that have a coefficient each: the general form of a plane codec.

The uniform codec weighs its planes by halves. Here each plane p has an fp16 coefficient for every
row and group of 64 columns, and the group an offset:

    W[row, column] = offset + sum_p coefficient[p] * bit[p, row, column]

Sums of signed powers of two (ShiftAddLLM, arXiv 2406.05981; BCQ, arXiv 1811.00025) are the case of
planes that stand for -1 and 1, `from_signs`. The engine's kernels `coefficients_int8`, `_f32` and
`_row` compute with this form (`native/kernels/kernels.h`). Shapes: P planes, O rows, I columns, G
groups of 64 columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from pliant.bits.layout import (
    CHUNK_BYTES,
    CHUNK_COLUMNS,
    GROUP_COLUMNS,
    TILE_ROWS,
    num_chunks,
    num_scale_groups,
    num_tiles,
)
from pliant.bits.plan import MAX_PLANES
from pliant.errors import UsageError


@dataclass(frozen=True, eq=False)
class CoefficientPlanes:
    """A matrix `[rows, columns]` of planes with a coefficient each, as it is stored.

    `planes[p]` is uint8 in the order of `layout`; `coefficients[p]` and `offsets` are the bits of
    fp16 numbers in the order of its scales.
    """

    rows: int
    columns: int
    planes: list[NDArray[np.uint8]]
    coefficients: list[NDArray[np.uint16]]
    offsets: NDArray[np.uint16]

    @property
    def effective_bits(self) -> float:
        """Stored bits per weight, coefficients, offsets and padding included."""
        num_bytes = sum(plane.nbytes for plane in self.planes) + self.offsets.nbytes
        num_bytes += sum(numbers.nbytes for numbers in self.coefficients)
        return 8 * num_bytes / (self.rows * self.columns)


def encode(
    bit_POI: NDArray[np.bool_],
    coefficient_POG: NDArray[np.float16],
    offset_OG: NDArray[np.float16],
) -> CoefficientPlanes:
    """Bits `[P, O, I]`, coefficients `[P, O, G]` and offsets `[O, G]` in stored order.

    `UsageError` for other than 1 to 8 planes, or shapes that contradict each other.
    """
    planes, rows, columns = bit_POI.shape
    shape = (rows, num_scale_groups(columns))
    if not 1 <= planes <= MAX_PLANES:
        raise UsageError(f"{planes} planes were given; a matrix has 1 to {MAX_PLANES}.")
    if coefficient_POG.shape != (planes, *shape) or offset_OG.shape != shape:
        raise UsageError(
            f"Coefficients {coefficient_POG.shape} and offsets {offset_OG.shape} were given; "
            f"bits {bit_POI.shape} need {(planes, *shape)} and {shape}."
        )
    return CoefficientPlanes(
        rows,
        columns,
        [_pack_bits(bit_OI) for bit_OI in bit_POI],
        [_pack_numbers(coefficient_OG) for coefficient_OG in coefficient_POG],
        _pack_numbers(offset_OG),
    )


def from_signs(
    positive_POI: NDArray[np.bool_], magnitude_POG: NDArray[np.float32]
) -> CoefficientPlanes:
    """The matrix `sum_p magnitude[p] * (+1 where positive, else -1)`.

    A sign is `2 * bit - 1`, so coefficients are twice the magnitudes and the offset is minus their
    sum; rounding both to fp16 is exact for powers of two whose ratios stay below 2^10.
    """
    coefficient_POG = (2 * magnitude_POG).astype(np.float16)
    offset_OG = (-magnitude_POG.sum(axis=0)).astype(np.float16)
    return encode(positive_POI, coefficient_POG, offset_OG)


def decode(
    encoded: CoefficientPlanes, rows: int | None = None, columns: int | None = None
) -> NDArray[np.float32]:
    """The float32 matrix `[rows, columns]`, terms added in the order of the formula.

    The reference of the kernels: each bit and number is looked up at the place that `layout`
    states. `UsageError` where more is asked for than is stored.
    """
    rows = encoded.rows if rows is None else rows
    columns = encoded.columns if columns is None else columns
    if not (1 <= rows <= encoded.rows and 1 <= columns <= encoded.columns):
        raise UsageError(
            f"{rows} x {columns} asked for; the matrix is {encoded.rows} x {encoded.columns}."
        )
    tile_O1, row_in_tile_O1 = np.divmod(np.arange(rows)[:, None], TILE_ROWS)
    chunk_I, column_in_chunk_I = np.divmod(np.arange(columns), CHUNK_COLUMNS)
    byte_OI = (
        (tile_O1 * num_chunks(encoded.columns) + chunk_I) * CHUNK_BYTES
        + 4 * row_in_tile_O1
        + column_in_chunk_I % 4
    )
    group_OI = tile_O1 * num_scale_groups(encoded.columns) + np.arange(columns) // GROUP_COLUMNS
    number_OI = group_OI * TILE_ROWS + row_in_tile_O1
    value_OI = encoded.offsets.view(np.float16)[number_OI].astype(np.float32)
    for plane, coefficients in zip(encoded.planes, encoded.coefficients, strict=True):
        bit_OI = plane[byte_OI] >> (column_in_chunk_I // 4) & 1
        coefficient_OI = coefficients.view(np.float16)[number_OI].astype(np.float32)
        value_OI = np.where(bit_OI == 1, value_OI + coefficient_OI, value_OI)
    return value_OI


def _pack_bits(bit_OI: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """One plane in layout order; bits beyond the matrix are zero."""
    rows, columns = bit_OI.shape
    tiles, chunks = num_tiles(rows), num_chunks(columns)
    padded_OI = np.zeros((tiles * TILE_ROWS, chunks * CHUNK_COLUMNS), np.bool_)
    padded_OI[:rows, :columns] = bit_OI
    # Axes: tile, row, chunk, bit, byte of the lane.
    bit_TRCBL = padded_OI.reshape(tiles, TILE_ROWS, chunks, 8, 4)
    return np.packbits(bit_TRCBL.transpose(0, 2, 1, 4, 3), axis=-1, bitorder="little").reshape(-1)


def _pack_numbers(number_OG: NDArray[np.float16]) -> NDArray[np.uint16]:
    """fp16 numbers in layout order: tile, group, row."""
    rows, groups = number_OG.shape
    padded_OG = np.zeros((num_tiles(rows) * TILE_ROWS, groups), np.float16)
    padded_OG[:rows] = number_OG
    tiled = padded_OG.reshape(-1, TILE_ROWS, groups).transpose(0, 2, 1)
    return cast(NDArray[np.uint16], np.ascontiguousarray(tiled).reshape(-1).view(np.uint16))
