"""The uniform nested codec: 8-bit codes of evenly spaced values, cut into planes.

A group of 64 columns of a row shares an fp16 scale `s`; a weight `w` has the code
`c = floor(w / s + 128)` in 0 ... 255, and plane 0 holds the most significant bit of all codes. The
first k planes hold `u = c >> (8 - k)` and stand for the midpoint of the codes that share `u`:

    w' = s * (step * (u + 0.5) - 128),  step = 2^(8 - k)

With `s >= max|w| / 128` every weight lies in the range of the codes, so the error is at most
`s * step / 2` for every k. Shapes: O rows, I columns, G groups of columns, C the 64 in a group,
K prefixes of planes whose error counts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, cast

import numpy as np
from numpy.typing import NDArray

from pliant.bits.codec import PADDING_FAULT, EncodedMatrix, PlaneForm, require_finite, scale_fault
from pliant.bits.feedback import ErrorFeedback
from pliant.bits.joint_rounding import JointRounding
from pliant.bits.layout import (
    CHUNK_COLUMNS,
    GROUP_COLUMNS,
    TILE_ROWS,
    num_chunks,
    num_scale_groups,
    num_tiles,
    plane_bytes,
    scale_bytes,
)
from pliant.bits.plan import MAX_PLANES
from pliant.errors import UsageError

#: Weights encoded at once: their fp32 values and two temporaries stay within 1 MiB of L2.
_BLOCK_WEIGHTS = 64 * 1024
#: With error feedback each column is a step in Python, so more rows at once are better; the fp64
#: copies of 7 levels of them take 56 MiB.
_COMPENSATED_WEIGHTS = 2**20
#: Codes `[O, chunks * 32]` and scales `[O, G]` of a padded block `[O, G, 64]` of so many columns.
QuantizeBlock = Callable[[NDArray[np.float32], int], tuple[NDArray[np.uint8], NDArray[np.float16]]]
#: Scale candidates in units of max|w| / 128. None clips, so 8 planes are within half a step.
_STRETCHES = (1.0, 1.01, 1.02, 1.035)
#: Added where few planes are stored: clipping the largest weights pays up to there, measured.
_CLIPS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
_MOST_PLANES_THAT_CLIP = 4
_LARGEST_SCALE = float(np.finfo(np.float16).max)


class UniformCodec:
    """Uniform nested codes, 1 to 8 planes, the scale of each group chosen by weight error.

    For every row and group the scale is the candidate with the smallest sum, over the prefixes of
    2 ... `planes` planes, of the squared weight error relative to that of the unstretched scale,
    so that no prefix is sacrificed for another. Scales are rounded up to fp16. Weights beyond 128
    times the largest fp16 number (8.4 million) are clipped to it; below 128 times the smallest
    (7.6e-6) the step no longer shrinks with the weights. All-zero groups get scale 0.
    """

    name: ClassVar[str] = "uniform"
    form: ClassVar[PlaneForm] = "uniform"
    nested: ClassVar[bool] = True

    def __init__(self, planes: int = MAX_PLANES) -> None:
        if not 1 <= planes <= MAX_PLANES:
            raise UsageError(f"{planes} planes asked for; a codec makes 1 to {MAX_PLANES}.")
        self.planes = planes

    def __repr__(self) -> str:
        return f"UniformCodec(planes={self.planes})"

    def with_planes(self, planes: int) -> UniformCodec:
        """The same codec making another number of planes; `UsageError` outside 1 to 8."""
        return UniformCodec(planes)

    def encode(self, weight_OI: NDArray[np.float32], name: str = "matrix") -> EncodedMatrix:
        """Planes and scales of a float32 matrix `[O, I]`, in blocks of whole tiles.

        Works in a few MiB beside the result. NaN or infinity raise `CheckpointError` with `name`.
        """
        return self._encode(weight_OI, name, self._quantize_block, _BLOCK_WEIGHTS)

    def encode_compensated(
        self, weight_OI: NDArray[np.float32], feedback: ErrorFeedback, name: str = "matrix"
    ) -> EncodedMatrix:
        """As `encode`, with codes that make up for each other's errors at the output.

        `feedback` is of the inputs of this matrix. All prefixes are chosen for together
        (`JointRounding`); large weights may be clipped where that pays.
        """
        joint = JointRounding(self.planes, feedback)

        def quantize_block(
            weight_OGC: NDArray[np.float32], columns: int
        ) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
            code_OI, scale_OG = joint.encode(weight_OGC, columns)
            return code_OI[:, : num_chunks(columns) * CHUNK_COLUMNS], scale_OG

        return self._encode(weight_OI, name, quantize_block, _COMPENSATED_WEIGHTS)

    def _encode(
        self,
        weight_OI: NDArray[np.float32],
        name: str,
        quantize_block: QuantizeBlock,
        block_weights: int,
    ) -> EncodedMatrix:
        """Planes and scales, `block_weights` weights in whole tiles at a time."""
        rows, columns = weight_OI.shape
        planes = [np.empty(plane_bytes(rows, columns), np.uint8) for _ in range(self.planes)]
        scales = np.empty(scale_bytes(rows, columns) // 2, np.uint16)
        plane_tile, scale_tile = (size // num_tiles(rows) for size in (planes[0].size, scales.size))
        tiles_at_once = max(1, block_weights // (TILE_ROWS * columns))
        for tile in range(0, num_tiles(rows), tiles_at_once):
            block_OI = weight_OI[tile * TILE_ROWS : (tile + tiles_at_once) * TILE_ROWS]
            code_OI, scale_OG = quantize_block(_padded(block_OI, name), columns)
            end = tile + code_OI.shape[0] // TILE_ROWS
            for plane, packed in zip(planes, pack_planes(code_OI, self.planes), strict=True):
                plane[tile * plane_tile : end * plane_tile] = packed
            scales[tile * scale_tile : end * scale_tile] = pack_scales(scale_OG)
        return EncodedMatrix(rows, columns, planes, scales)

    def _quantize_block(
        self, weight_OGC: NDArray[np.float32], columns: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
        """Codes `[O, chunks * 32]` and scales `[O, G]` of a padded block."""
        scale_OG = self._best_scales(weight_OGC, columns)
        code_OI = quantize(weight_OGC, scale_OG).reshape(weight_OGC.shape[0], -1)
        code_OI[:, columns:] = 0
        return code_OI[:, : num_chunks(columns) * CHUNK_COLUMNS], scale_OG

    def _best_scales(self, weight_OGC: NDArray[np.float32], columns: int) -> NDArray[np.float16]:
        """The fp16 scale of each row and group with the smallest relative error."""
        # abs once more: -min of a zero group is -0, whose sign bit must not reach the file.
        largest_OG = np.abs(np.maximum(weight_OGC.max(axis=2), -weight_OGC.min(axis=2)))
        best_scale_OG = _round_up(largest_OG / 128)
        padding = weight_OGC.shape[1] * GROUP_COLUMNS - columns
        reference_KOG = self._errors(weight_OGC, best_scale_OG, padding)
        best_OG = np.full(largest_OG.shape, len(reference_KOG), np.float32)
        clips = _CLIPS if self.planes <= _MOST_PLANES_THAT_CLIP else ()
        for stretch in (*_STRETCHES[1:], *clips):
            scale_OG = _round_up(largest_OG * np.float32(stretch / 128))
            error_KOG = self._errors(weight_OGC, scale_OG, padding)
            # A group without any error, such as all zeros, keeps its first scale: 0 / 0 is not < 0.
            with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
                total_OG = (error_KOG / reference_KOG).sum(axis=0)
            better_OG = total_OG < best_OG
            best_OG = np.where(better_OG, total_OG, best_OG)
            best_scale_OG = np.where(better_OG, scale_OG, best_scale_OG)
        return best_scale_OG

    def _errors(
        self, weight_OGC: NDArray[np.float32], scale_OG: NDArray[np.float16], padding: int
    ) -> NDArray[np.float32]:
        """Squared weight error of the prefixes of 2 ... planes planes (1 of 1), `[K, O, G]`."""
        scale_OG1 = scale_OG.astype(np.float32)[:, :, None]
        position_OGC = weight_OGC * _reciprocal(scale_OG1)
        prefixes = range(min(2, self.planes), self.planes + 1)
        error_KOG = np.empty((len(prefixes), *scale_OG.shape), np.float32)
        difference_OGC = np.empty_like(position_OGC)
        for prefix, planes in enumerate(prefixes):
            half_codes = np.float32(1 << (planes - 1))
            # In units of the step of this prefix: w' is the middle of the step that holds w.
            np.multiply(position_OGC, half_codes / 128, out=difference_OGC)
            middle_OGC = np.floor(difference_OGC)
            if self.planes <= _MOST_PLANES_THAT_CLIP:
                np.clip(middle_OGC, -half_codes, half_codes - 1, out=middle_OGC)
            difference_OGC -= middle_OGC
            difference_OGC -= np.float32(0.5)
            error_OG = np.einsum("ogc,ogc->og", difference_OGC, difference_OGC)
            error_OG[:, -1] -= np.float32(0.25 * padding)
            error_KOG[prefix] = error_OG * (scale_OG1[:, :, 0] * 128 / half_codes) ** 2
        return error_KOG

    def decode(
        self,
        encoded: EncodedMatrix,
        planes: int,
        rows: int | None = None,
        columns: int | None = None,
    ) -> NDArray[np.float32]:
        """The float32 matrix `[rows, columns]` that the first `planes` planes stand for.

        Readable rather than fast: each bit and scale is looked up at the place that `layout`
        states. `UsageError` where more is asked for than is stored.
        """
        code_OI, scale_OG = self.codes(encoded, planes, rows, columns)
        step = 1 << (MAX_PLANES - planes)
        value_OI = np.float32(step) * (code_OI.astype(np.float32) + np.float32(0.5)) - 128
        scale_OI = np.repeat(scale_OG, GROUP_COLUMNS, axis=1)[:, : code_OI.shape[1]]
        return cast(NDArray[np.float32], scale_OI.astype(np.float32) * value_OI)

    def codes(
        self,
        encoded: EncodedMatrix,
        planes: int,
        rows: int | None = None,
        columns: int | None = None,
    ) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
        """The numbers u of the first `planes` planes `[rows, columns]` and the scales `[rows, G]`.

        What `decode` makes a matrix of, for those who write the codes elsewhere. `UsageError`
        where more is asked for than is stored.
        """
        rows, columns = encoded.checked_prefix(planes, rows, columns)
        code_OI = encoded.codes(planes, rows, columns).astype(np.uint8)
        tile_O1, row_in_tile_O1 = np.divmod(np.arange(rows)[:, None], TILE_ROWS)
        group_G = np.arange(-(-columns // GROUP_COLUMNS))
        tile_group_OG = tile_O1 * num_scale_groups(encoded.columns) + group_G
        scale_OG = encoded.scales.view(np.float16)[tile_group_OG * TILE_ROWS + row_in_tile_O1]
        return code_OI, scale_OG

    def fault(self, encoded: EncodedMatrix) -> str | None:
        """What is wrong with the scales of a stored matrix, such as a NaN; None if nothing is."""
        fault = scale_fault(encoded.scales)
        if fault is not None:
            return fault
        tiled = encoded.scales.reshape(num_tiles(encoded.rows), -1, TILE_ROWS)
        used = (encoded.rows - 1) % TILE_ROWS + 1
        return PADDING_FAULT if tiled[-1, :, used:].any() else None

    def unpack(self, encoded: EncodedMatrix) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
        """Codes uint8 `[O, I]`, bits beyond the planes stored 0, and scales fp16 `[O, G]`."""
        rows, columns = encoded.rows, encoded.columns
        prefix_OI = encoded.codes(len(encoded.planes), rows, columns)
        code_OI = (prefix_OI << (MAX_PLANES - len(encoded.planes))).astype(np.uint8)
        scale = encoded.scales.view(np.float16)
        scale_TGR = scale.reshape(-1, num_scale_groups(columns), TILE_ROWS)
        scale_OG = scale_TGR.transpose(0, 2, 1).reshape(-1, num_scale_groups(columns))
        return code_OI, scale_OG[:rows]

    def assemble(self, code_OI: NDArray[np.uint8], scale_OG: NDArray[np.float16]) -> EncodedMatrix:
        """The matrix of codes and scales that were chosen elsewhere; undoes `unpack`.

        Of each code as many bits are stored as the codec makes planes. Scales are finite and 0 or
        more (`ValueError`: whoever chose them has a bug).
        """
        if not (np.isfinite(scale_OG).all() and (scale_OG >= 0).all()):
            raise ValueError("Scales must be finite and 0 or more.")
        rows, columns = code_OI.shape
        padded_OI = np.zeros((num_tiles(rows) * TILE_ROWS, num_chunks(columns) * CHUNK_COLUMNS),
                             np.uint8)  # fmt: skip
        padded_OI[:rows, :columns] = code_OI
        padded_OG = np.zeros((len(padded_OI), num_scale_groups(columns)), np.float16)
        padded_OG[:rows] = scale_OG
        planes = pack_planes(padded_OI, self.planes)
        return EncodedMatrix(rows, columns, planes, pack_scales(padded_OG))


def quantize(weight_OGC: NDArray[np.float32], scale_OG: NDArray[np.float16]) -> NDArray[np.uint8]:
    """8-bit codes of weights `[O, G, 64]` at given scales; groups of scale 0 get code 0."""
    position_OGC = weight_OGC * _reciprocal(scale_OG.astype(np.float32)[:, :, None])
    np.floor(position_OGC, out=position_OGC)
    position_OGC += 128
    np.clip(position_OGC, 0, 255, out=position_OGC)
    code_OGC = position_OGC.astype(np.uint8)
    if not scale_OG.all():
        code_OGC[scale_OG == 0] = 0
    return code_OGC


def pack_planes(code_OI: NDArray[np.uint8], planes: int) -> list[NDArray[np.uint8]]:
    """The first `planes` bit-planes of codes `[tiles * 32, chunks * 32]`, in layout order."""
    tiles, chunks = code_OI.shape[0] // TILE_ROWS, code_OI.shape[1] // CHUNK_COLUMNS
    # Axes: tile, chunk, vector of 16 rows, row, byte lane, bit. One byte is made of the last axis.
    code = code_OI.reshape(tiles, 2, 16, chunks, 8, 4).transpose(0, 3, 1, 2, 5, 4)
    code = np.ascontiguousarray(code).reshape(-1)
    bits = (code & np.uint8(128 >> plane) for plane in range(planes))
    return [np.packbits(bit, bitorder="little") for bit in bits]


def pack_scales(scale_OG: NDArray[np.float16]) -> NDArray[np.uint16]:
    """The bits of scales `[tiles * 32, G]` in layout order: tile, group, row."""
    tiled = scale_OG.reshape(-1, TILE_ROWS, scale_OG.shape[1]).transpose(0, 2, 1)
    return np.ascontiguousarray(tiled).reshape(-1).view(np.uint16)


def _padded(block_OI: NDArray[np.float32], name: str) -> NDArray[np.float32]:
    """The block as `[O, G, 64]`, zeros up to whole tiles and groups; refuses NaN and infinity."""
    rows, columns = block_OI.shape
    require_finite(block_OI, name)
    groups = num_scale_groups(columns)
    padded = np.zeros((num_tiles(rows) * TILE_ROWS, groups * GROUP_COLUMNS), np.float32)
    padded[:rows, :columns] = block_OI
    return padded.reshape(-1, groups, GROUP_COLUMNS)


def _round_up(scale_OG: NDArray[np.float32]) -> NDArray[np.float16]:
    """fp16 at or above the given scale, so that the largest weight stays within the codes."""
    rounded = np.minimum(scale_OG, np.float32(_LARGEST_SCALE)).astype(np.float16)
    return np.where(rounded < scale_OG, np.nextafter(rounded, np.float16(_LARGEST_SCALE)), rounded)


def _reciprocal(scale: NDArray[np.float32]) -> NDArray[np.float32]:
    """1 / scale, and 0 where the scale is 0."""
    return np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale > 0)
