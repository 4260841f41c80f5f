"""The shift-add codec: planes of signs with scales that are sums of three powers of two.

Scales are shared by blocks of 4 rows and 64 columns, the "lat" scaling of ShiftAddLLM (arXiv
2406.05981) with the blocks that the kernels multiply:

    w' = sum_p a[p, row / 4, column / 64] * (+1 where the bit of plane p is set, else -1)

with `a[0] >= a[1] >= ...`, so that a prefix of planes stands for its own part of the sum, though
only all of them together were fitted. Up to 4 planes times 8 blocks of a tile are 32 fp16 numbers
for each tile and group, as many as the uniform codec has: files and counts of bytes are the same.
Scales of 0 make a block zero. Shapes: O rows, I columns, G groups, N blocks of rows, D weights of
a block, q planes.
"""

from __future__ import annotations

from typing import ClassVar, cast

import numpy as np
from numpy.typing import NDArray

from pliant.bits.binary_coding import POWER_TERMS, BinaryCode, Float, fit
from pliant.bits.codec import PADDING_FAULT, EncodedMatrix, PlaneForm, require_finite, scale_fault
from pliant.bits.feedback import ErrorFeedback
from pliant.bits.layout import (
    CHUNK_COLUMNS,
    GROUP_COLUMNS,
    TILE_ROWS,
    num_chunks,
    num_scale_groups,
    num_tiles,
)
from pliant.bits.plan import MAX_PLANES
from pliant.bits.uniform import pack_planes
from pliant.errors import UsageError

SHARED_ROWS = 4
#: As many as make a tile and group have 32 numbers.
MOST_PLANES = 4
_BLOCKS = TILE_ROWS // SHARED_ROWS
#: Rows coded at once: 64 fp64 columns of them and their temporaries stay within 20 MiB.
_ROWS_AT_ONCE = 4096
#: With error feedback so many weights, of which there are three fp64 copies: 24 MiB.
_COMPENSATED_WEIGHTS = 2**20

#: Why the other scaling of ShiftAddLLM is not among the codecs of artifacts.
ACC_REFUSED = (
    'shift-add-acc, the column-wise "acc" scaling of ShiftAddLLM, cannot be stored as planes: its '
    "scales belong to columns, which no kernel multiplies, and its weights are rounded after a "
    "random rotation of inputs and outputs that is not folded into this model. Use the codec "
    "shift-add; benchmarks/shift_add.py measures both."
)


class ShiftAddCodec:
    """Signs and sums of powers of two, 1 to 4 planes, scales by alternating least squares."""

    name: ClassVar[str] = "shift-add"
    form: ClassVar[PlaneForm] = "signs"
    nested: ClassVar[bool] = False

    def __init__(self, planes: int = MOST_PLANES) -> None:
        if not 1 <= planes <= MOST_PLANES:
            raise UsageError(
                f"{planes} planes asked for; the codec {self.name} makes 1 to {MOST_PLANES}."
            )
        self.planes = planes

    def __repr__(self) -> str:
        return f"ShiftAddCodec(planes={self.planes})"

    def with_planes(self, planes: int) -> ShiftAddCodec:
        """The same codec making another number of planes; `UsageError` outside 1 to 4."""
        return ShiftAddCodec(planes)

    def encode(self, weight_OI: NDArray[np.float32], name: str = "matrix") -> EncodedMatrix:
        """Planes and scales of a float32 matrix `[O, I]` that are nearest to its weights.

        `CheckpointError` where it holds NaN or infinity.
        """
        num_rows, num_columns = weight_OI.shape
        coded = _Coded(num_rows, num_columns, self.planes)
        for first in range(0, num_rows, _ROWS_AT_ONCE):
            rows = slice(first, min(first + _ROWS_AT_ONCE, num_rows))
            block_OI = _finite(weight_OI[rows], name)
            for column in range(0, num_columns, GROUP_COLUMNS):
                group_OJ = block_OI[:, column : column + GROUP_COLUMNS]
                code = coded.begin(rows, column, group_OJ, np.ones(group_OJ.shape[1]))
                coded.set_signs(code, rows, slice(column, column + group_OJ.shape[1]), group_OJ)
        return coded.packed()

    def encode_compensated(
        self, weight_OI: NDArray[np.float32], feedback: ErrorFeedback, name: str = "matrix"
    ) -> EncodedMatrix:
        """As `encode`, with the errors of columns paid back by later ones.

        The scales of 64 columns are fitted when their sweep begins, to what the columns before them
        made of them, each weighed by what an error of it costs the output: `1 / U[j, j]²`.
        """
        num_rows, num_columns = weight_OI.shape
        coded = _Coded(num_rows, num_columns, self.planes)
        at_once = max(_COMPENSATED_WEIGHTS // num_columns // TILE_ROWS, 1) * TILE_ROWS
        for first in range(0, num_rows, at_once):
            rows = slice(first, min(first + at_once, num_rows))
            self._sweep(coded, rows, _finite(weight_OI[rows], name), feedback)
        return coded.packed()

    def _sweep(self, coded: _Coded, rows: slice, target_OI: Float, feedback: ErrorFeedback) -> None:
        """Code some rows, which depend on no others, by error feedback."""
        cost_I = 1 / np.square(feedback.factor_II.diagonal())
        code: list[BinaryCode] = []

        def begin(column: int, target_KOJ: Float) -> None:
            cost_J = cost_I[column : column + target_KOJ.shape[2]]
            code[:] = [coded.begin(rows, column, target_KOJ[0], cost_J)]

        def round_column(column: int, target_KO: Float) -> Float:
            columns = slice(column, column + 1)
            return coded.set_signs(code[0], rows, columns, target_KO[0][:, None]).T

        feedback.sweep(target_OI, round_column, 1, begin)

    def decode(
        self,
        encoded: EncodedMatrix,
        planes: int,
        rows: int | None = None,
        columns: int | None = None,
    ) -> NDArray[np.float32]:
        """The float32 matrix `[rows, columns]` of the first `planes` planes; terms in their order.

        `UsageError` where more is asked for than is stored.
        """
        rows, columns = encoded.checked_prefix(planes, rows, columns)
        scale_TGpB = encoded.scales.view(np.float16).reshape(
            num_tiles(encoded.rows), num_scale_groups(encoded.columns), MOST_PLANES, _BLOCKS
        )
        row_O1, group_I = np.arange(rows)[:, None], np.arange(columns) // GROUP_COLUMNS
        tile_O1, block_O1 = row_O1 // TILE_ROWS, row_O1 % TILE_ROWS // SHARED_ROWS
        value_OI = np.zeros((rows, columns), np.float32)
        for plane in range(planes):
            scale_OI = scale_TGpB[tile_O1, group_I, plane, block_O1].astype(np.float32)
            bit_OI = encoded.bits(plane, rows, columns)
            value_OI += np.where(bit_OI, scale_OI, -scale_OI)
        # -0 is no value of its own: where all scales are 0 the weight is 0.
        return value_OI + np.float32(0)

    def fault(self, encoded: EncodedMatrix) -> str | None:
        """What is wrong with the scales of a stored matrix, such as a NaN; None if nothing is."""
        fault = scale_fault(encoded.scales)
        if fault is not None:
            return fault
        if (num_powers(encoded.scales) > POWER_TERMS).any():
            return f"a scale that is no sum of {POWER_TERMS} powers of two"
        tiled = encoded.scales.reshape(-1, num_scale_groups(encoded.columns), MOST_PLANES, _BLOCKS)
        used = -(-((encoded.rows - 1) % TILE_ROWS + 1) // SHARED_ROWS)
        return PADDING_FAULT if tiled[-1, :, :, used:].any() else None


def num_powers(scale: NDArray[np.uint16]) -> NDArray[np.int64]:
    """How many signed powers of two each finite fp16 number, given by its bits, is the sum of.

    Digits of the non-adjacent form, of which no other sum has fewer: those of `3x xor x`.
    """
    bits = scale.astype(np.int64) & 0x7FFF
    exponent, fraction = bits >> 10, bits & 0x3FF
    digits = np.where(exponent > 0, fraction + 0x400, fraction)
    changed = 3 * digits ^ digits
    return cast(NDArray[np.int64], np.bitwise_count(changed).astype(np.int64))


class _Coded:
    """Signs and scales of a matrix while its columns are coded."""

    def __init__(self, rows: int, columns: int, planes: int) -> None:
        self.rows, self.columns, self.planes = rows, columns, planes
        padded_rows = num_tiles(rows) * TILE_ROWS
        # The sign of plane p is bit 7 - p.
        self._signs_OI = np.zeros((padded_rows, num_chunks(columns) * CHUNK_COLUMNS), np.uint8)
        self._scale_NGq = np.zeros(
            (padded_rows // SHARED_ROWS, num_scale_groups(columns), MOST_PLANES), np.float16
        )

    def begin(self, rows: slice, column: int, target_OJ: Float, cost_J: Float) -> BinaryCode:
        """Fit and keep the scales of all blocks of the columns from `column` on."""
        code = fit(
            _in_blocks(target_OJ),
            _in_blocks(np.broadcast_to(cost_J, target_OJ.shape)),
            self.planes,
        )
        first = rows.start // SHARED_ROWS
        place = slice(first, first + len(code.scale_Nq))
        self._scale_NGq[place, column // GROUP_COLUMNS, : self.planes] = code.scale_Nq
        return code

    def set_signs(self, code: BinaryCode, rows: slice, columns: slice, target_OJ: Float) -> Float:
        """Keep the signs of the sums nearest to the targets; the sums, fp64 `[O, J]`."""
        count, width = target_OJ.shape
        number_ND = code.nearest(_in_blocks(target_OJ))
        bit_q = 1 << (MAX_PLANES - 1 - np.arange(self.planes))
        byte_NL = (code.signs_NLq * bit_q).sum(axis=2).astype(np.uint8)
        # A block of zeros keeps no signs: its bytes do not depend on how it became zero.
        byte_NL[code.scale_Nq[:, 0] == 0] = 0
        byte_ND = np.take_along_axis(byte_NL, number_ND, 1)
        self._signs_OI[rows, columns] = byte_ND.reshape(-1, width)[:count]
        return code.values(number_ND).reshape(-1, width)[:count]

    def packed(self) -> EncodedMatrix:
        """The matrix in stored order."""
        planes = pack_planes(self._signs_OI, self.planes)
        tiled = self._scale_NGq.reshape(-1, _BLOCKS, *self._scale_NGq.shape[1:])
        scales = np.ascontiguousarray(tiled.transpose(0, 2, 3, 1)).reshape(-1).view(np.uint16)
        return EncodedMatrix(self.rows, self.columns, planes, scales)


def _in_blocks(value_OJ: Float) -> Float:
    """`[N, 4 * J]`, the last block filled with zeros."""
    rows, width = value_OJ.shape
    padded_OJ = np.zeros((-(-rows // SHARED_ROWS) * SHARED_ROWS, width))
    padded_OJ[:rows] = value_OJ
    return padded_OJ.reshape(-1, SHARED_ROWS * width)


def _finite(weight_OI: NDArray[np.float32], name: str) -> NDArray[np.float64]:
    require_finite(weight_OI, name)
    return weight_OI.astype(np.float64)
