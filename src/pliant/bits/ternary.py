"""Ternary weights, five to a byte: 1.6 bits and a scale; reference of the kernel `ternary_int8`.

    W[row, column] = scale * (digit - 1),   digit in {0, 1, 2}

with one fp16 scale for every row and group of 64 columns. Five digits are a number v of base 3, the
first the most significant, stored as `x = ceil(v * 256 / 243)`. Then `3 * x` is `256 * digit` plus
the byte of the digits that follow, so that digits come off by tripling, and a dot product with them
needs no digit at all (`native/kernels/ternary.h`).

Columns go by spans of 320: digit i of the bytes of a whole span is its i-th group of 64. The last
span takes as few bytes as hold its columns. Order of bytes: tile, span, quad, 32 rows, 4 bytes;
byte b of quad q holds columns `4 * (i * quads + q) + b` of the span.

This is no codec of an artifact: its digits are not nested planes, a prefix of them is no matrix.
Shapes: O rows, I columns, G groups of 64 columns, C the 64 in a group.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from pliant.bits.layout import GROUP_COLUMNS, TILE_ROWS, ceil_div, num_scale_groups, num_tiles
from pliant.errors import CheckpointError, UsageError

DIGITS = 5
#: Columns of a whole span: one group for each digit of its bytes.
SPAN_COLUMNS = DIGITS * GROUP_COLUMNS
_WHOLE_QUADS = GROUP_COLUMNS // 4
_LARGEST_SCALE = float(np.finfo(np.float16).max)


@dataclass(frozen=True, eq=False)
class EncodedTernary:
    """A ternary matrix `[rows, columns]` as it is stored.

    `digits` is uint8 `[ternary_bytes(rows, columns)]`; `scales` the bits of fp16 numbers in the
    order of `layout`. Digits beyond the columns are 1, weights of zero.
    """

    rows: int
    columns: int
    digits: NDArray[np.uint8]
    scales: NDArray[np.uint16]

    @property
    def effective_bits(self) -> float:
        """Stored bits per weight, scales and padding included."""
        return 8 * (self.digits.nbytes + self.scales.nbytes) / (self.rows * self.columns)


def span_quads(columns: int, span: int) -> int:
    """Runs of 4 bytes a row in a span of a matrix of `columns` columns: 16, at the end fewer."""
    rest = columns - span * SPAN_COLUMNS
    return _WHOLE_QUADS if rest >= SPAN_COLUMNS else ceil_div(rest, 4 * DIGITS)


def ternary_bytes(rows: int, columns: int) -> int:
    """Stored bytes of the digits of a `[rows, columns]` matrix, padding included."""
    spans = range(ceil_div(columns, SPAN_COLUMNS))
    return num_tiles(rows) * TILE_ROWS * 4 * sum(span_quads(columns, span) for span in spans)


def quantize(weight_OI: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
    """Digits `[O, I]` and scales `[O, G]` with the least squared error for each row and group.

    With the k largest magnitudes of a group kept, the best scale is their mean and the error falls
    by (their sum)^2 / k; the k of the largest fall is the optimum.
    """
    rows, columns = weight_OI.shape
    groups = num_scale_groups(columns)
    padded_OI = np.zeros((rows, groups * GROUP_COLUMNS), np.float32)
    padded_OI[:, :columns] = weight_OI
    weight_OGC = padded_OI.reshape(rows, groups, GROUP_COLUMNS)
    sorted_OGC = -np.sort(-np.abs(weight_OGC).astype(np.float64), axis=-1)
    sum_OGC = np.cumsum(sorted_OGC, axis=-1)
    count_C = np.arange(1, GROUP_COLUMNS + 1)
    best_OG1 = np.argmax(sum_OGC**2 / count_C, axis=-1)[..., None]
    mean_OG = np.take_along_axis(sum_OGC / count_C, best_OG1, axis=-1)[..., 0]
    scale_OG = np.minimum(mean_OG, _LARGEST_SCALE).astype(np.float16)
    half_OG1 = scale_OG.astype(np.float32)[..., None] / 2
    digit_OGC = 1 + (weight_OGC > half_OG1).astype(np.uint8) - (weight_OGC < -half_OG1)
    digit_OGC = np.where(half_OG1 > 0, digit_OGC, 1).astype(np.uint8)
    return digit_OGC.reshape(rows, -1)[:, :columns], scale_OG


def encode(weight_OI: NDArray[np.float32], name: str = "matrix") -> EncodedTernary:
    """Digits and scales of a float32 matrix; NaN and infinity raise `CheckpointError`."""
    if not np.isfinite(weight_OI).all():
        raise CheckpointError(
            f"{name} holds NaN or infinite weights, which no digit can store; "
            "the checkpoint is damaged or its training diverged."
        )
    rows, columns = weight_OI.shape
    digit_OI, scale_OG = quantize(weight_OI)
    padded_OG = np.zeros((num_tiles(rows) * TILE_ROWS, scale_OG.shape[1]), np.float16)
    padded_OG[:rows] = scale_OG
    tiled = padded_OG.reshape(-1, TILE_ROWS, scale_OG.shape[1]).transpose(0, 2, 1)
    scales = np.ascontiguousarray(tiled).reshape(-1).view(np.uint16)
    return EncodedTernary(rows, columns, pack_digits(digit_OI), scales)


def pack_digits(digit_OI: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Digits in stored order, five to a byte."""
    rows, columns = digit_OI.shape
    tiles = num_tiles(rows)
    spans = []
    for span in range(ceil_div(columns, SPAN_COLUMNS)):
        quads = span_quads(columns, span)
        part_OI = digit_OI[:, span * SPAN_COLUMNS : (span + 1) * SPAN_COLUMNS]
        padded_OI = np.ones((tiles * TILE_ROWS, DIGITS * quads * 4), np.uint32)
        padded_OI[:rows, : part_OI.shape[1]] = part_OI
        number = np.zeros((tiles * TILE_ROWS, quads * 4), np.uint32)
        for digit in padded_OI.reshape(-1, DIGITS, quads * 4).transpose(1, 0, 2):
            number = 3 * number + digit
        byte = ((number * 256 + 242) // 243).astype(np.uint8)
        # Axes: tile, row, quad, byte -> tile, quad, row, byte.
        ordered = byte.reshape(tiles, TILE_ROWS, quads, 4).transpose(0, 2, 1, 3)
        spans.append(ordered.reshape(tiles, -1))
    return np.concatenate(spans, axis=1).reshape(-1)


def decode(
    encoded: EncodedTernary, rows: int | None = None, columns: int | None = None
) -> NDArray[np.float32]:
    """The float32 matrix `[rows, columns]`; each digit is looked up at its place and tripled out.

    `UsageError` where more is asked for than is stored.
    """
    rows = encoded.rows if rows is None else rows
    columns = encoded.columns if columns is None else columns
    if not (1 <= rows <= encoded.rows and 1 <= columns <= encoded.columns):
        raise UsageError(
            f"{rows} x {columns} asked for; the matrix is {encoded.rows} x {encoded.columns}."
        )
    tile_bytes = encoded.digits.size // num_tiles(encoded.rows)
    tile_O1, row_in_tile_O1 = np.divmod(np.arange(rows)[:, None], TILE_ROWS)
    span_I, column_in_span_I = np.divmod(np.arange(columns), SPAN_COLUMNS)
    quads = [span_quads(encoded.columns, span) for span in range(span_I[-1] + 1)]
    quads_I = np.array(quads)[span_I]
    digit_I, quad_I = np.divmod(column_in_span_I // 4, quads_I)
    byte_OI = (
        tile_O1 * tile_bytes
        + span_I * (_WHOLE_QUADS * 4 * TILE_ROWS)
        + (quad_I * TILE_ROWS + row_in_tile_O1) * 4
        + column_in_span_I % 4
    )
    power_I = 3 ** digit_I.astype(np.int64)
    digit_OI = 3 * (encoded.digits[byte_OI] * power_I % 256) // 256
    group_OI = tile_O1 * num_scale_groups(encoded.columns) + np.arange(columns) // GROUP_COLUMNS
    scales = encoded.scales.view(np.float16).astype(np.float32)
    scale_OI = scales[group_OI * TILE_ROWS + row_in_tile_O1]
    return cast(NDArray[np.float32], scale_OI * (digit_OI - 1).astype(np.float32))
