"""Blocks of GGUF written straight from plane codes, and which of them hold the codes exactly.

The first k planes of a weight hold a number u, and with the scale s of its group of 64 columns

    w = s * (2^(8 - k) * (u + 0.5) - 128) = s * 2^(7 - k) * t,   t = 2 u + 1 - 2^k

so t is odd and |t| < 2^k. A symmetric block of 32 columns is d * (q - c) with an fp16 d: with
d = s * 2^(7 - k), a power of two times s, and q = t + c it is w to the last bit as long as t fits:

    Q4_0  q - 8,  t in -7 ... 7      up to 3 planes, 4.5 bits a weight
    Q5_0  q - 16, t in -15 ... 15    up to 4 planes, 5.5
    Q8_0  q,      t in -127 ... 127  up to 7 planes, 8.5

A block with a minimum is d * q + m: q = u and d = s * 2^(8 - k) are exact, but m = s * (2^(7 - k) -
128) takes more than the 11 bits of fp16, so Q4_1 (up to 4 planes) and Q5_1 (up to 5) hold every
code exactly and the offset of a block to within 2^-11 of itself, 0.004 of a step at 4 planes.

K-quants share one or two fp16 numbers between 256 columns and round the scales of 16 or 32 of them
to 4, 6 or 8 bits. Our four scales of 256 columns are independent fp16, so codes fit and scales do
not: Q6_K (t, up to 5 planes) rounds them to 8 bits, Q4_K and Q5_K (u, up to 4 and 5) scale and
minimum to 6 bits. Q2_K (4 bits) and Q3_K (signed 6 bits) would lose what Q4_0 keeps at few more
bits; they are not written. The other types have no evenly spaced codes.

Shape suffixes: O rows, I columns, G groups of 64 columns, B blocks, C columns in a block.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from pliant.bits import GROUP_COLUMNS
from pliant.errors import UnsupportedError

Codes = NDArray[np.uint8]
Scales = NDArray[np.float16]
Write = Callable[[Codes, Scales, int], NDArray[np.uint8]]

_LARGEST_HALF = float(np.finfo(np.float16).max)


class BlockType(msgspec.Struct, frozen=True):
    """A tensor type of GGUF that codes are written into.

    `columns` and `num_bytes` of one block; `most_planes` whose codes it holds; `is_exact`: scales
    and offsets survive as well, so that the weights are equal to the last bit.
    """

    name: str
    columns: int
    num_bytes: int
    most_planes: int
    is_exact: bool
    write: Write

    def bytes_of(self, rows: int, columns: int) -> int:
        """Bytes of a matrix; `columns` divide into blocks."""
        return rows * (columns // self.columns) * self.num_bytes


def _odd_numbers(code_OI: Codes, planes: int) -> NDArray[np.int16]:
    """t = 2 u + 1 - 2^k of each weight."""
    return cast(NDArray[np.int16], 2 * code_OI.astype(np.int16) + np.int16(1 - (1 << planes)))


def _block_scales(scale_OG: Scales, factor: float, num_blocks: int, columns: int) -> Scales:
    """`factor` times the scale of each block of at most 64 columns, exactly, fp16 `[O, B]`."""
    per_group = GROUP_COLUMNS // columns
    scale_OB = np.repeat(scale_OG.astype(np.float32), per_group, axis=1)[:, :num_blocks]
    return to_half(scale_OB * np.float32(factor))


def to_half(value: NDArray[np.float32]) -> Scales:
    """fp16 of numbers; `UnsupportedError` beyond its largest."""
    if value.size and float(np.abs(value).max()) > _LARGEST_HALF:
        raise UnsupportedError(
            f"A scale of this model times its step is {float(np.abs(value).max()):.4g}; blocks of "
            "GGUF hold at most 65504. Export with --type f32."
        )
    return value.astype(np.float16)


def _bytes(*parts: NDArray[np.generic]) -> NDArray[np.uint8]:
    """The bytes of parts `[O, B, ...]` behind each other in every block, uint8 `[O, B * bytes]`."""
    rows = parts[0].shape[0]
    raw = [np.ascontiguousarray(part).view(np.uint8).reshape(*part.shape[:2], -1)
           for part in parts]  # fmt: skip
    return np.concatenate(raw, axis=2).reshape(rows, -1)


def _halves(values: NDArray[np.generic]) -> NDArray[np.generic]:
    return values[:, :, None]


def _nibbles(q_OBC: Codes) -> NDArray[np.uint8]:
    """Low four bits of 32 numbers: number j below number j + 16 in one byte."""
    return cast(Codes, q_OBC[:, :, :16] & 15 | (q_OBC[:, :, 16:] & 15) << 4)


def _fifth_bits(q_OBC: Codes) -> NDArray[np.uint8]:
    """Bit 4 of 32 numbers as four bytes, number 0 the least significant."""
    return np.packbits(q_OBC >> 4 & 1, axis=2, bitorder="little")


def _blocked(values_OI: NDArray[np.generic], columns: int) -> NDArray[np.generic]:
    return values_OI.reshape(values_OI.shape[0], -1, columns)


def _symmetric(code_OI: Codes, scale_OG: Scales, planes: int) -> tuple[NDArray[np.int16], Scales]:
    t_OBC = cast(NDArray[np.int16], _blocked(_odd_numbers(code_OI, planes), 32))
    return t_OBC, _block_scales(scale_OG, 2.0 ** (7 - planes), t_OBC.shape[1], 32)


def _with_minimum(code_OI: Codes, scale_OG: Scales, planes: int) -> tuple[Codes, Scales, Scales]:
    u_OBC = cast(Codes, _blocked(code_OI, 32))
    d_OB = _block_scales(scale_OG, 2.0 ** (8 - planes), u_OBC.shape[1], 32)
    m_OB = _block_scales(scale_OG, 2.0 ** (7 - planes) - 128, u_OBC.shape[1], 32)
    return u_OBC, d_OB, m_OB


def _q4_0(code_OI: Codes, scale_OG: Scales, planes: int) -> NDArray[np.uint8]:
    t_OBC, d_OB = _symmetric(code_OI, scale_OG, planes)
    return _bytes(_halves(d_OB), _nibbles((t_OBC + 8).astype(np.uint8)))


def _q5_0(code_OI: Codes, scale_OG: Scales, planes: int) -> NDArray[np.uint8]:
    t_OBC, d_OB = _symmetric(code_OI, scale_OG, planes)
    q_OBC = (t_OBC + 16).astype(np.uint8)
    return _bytes(_halves(d_OB), _fifth_bits(q_OBC), _nibbles(q_OBC))


def _q8_0(code_OI: Codes, scale_OG: Scales, planes: int) -> NDArray[np.uint8]:
    t_OBC, d_OB = _symmetric(code_OI, scale_OG, planes)
    return _bytes(_halves(d_OB), t_OBC.astype(np.int8))


def _q4_1(code_OI: Codes, scale_OG: Scales, planes: int) -> NDArray[np.uint8]:
    u_OBC, d_OB, m_OB = _with_minimum(code_OI, scale_OG, planes)
    return _bytes(_halves(d_OB), _halves(m_OB), _nibbles(u_OBC))


def _q5_1(code_OI: Codes, scale_OG: Scales, planes: int) -> NDArray[np.uint8]:
    u_OBC, d_OB, m_OB = _with_minimum(code_OI, scale_OG, planes)
    return _bytes(_halves(d_OB), _halves(m_OB), _fifth_bits(u_OBC), _nibbles(u_OBC))


def _small_multiples(value_OBS: NDArray[np.float32], most: int) -> tuple[Scales, NDArray[np.uint8]]:
    """Numbers that are not negative as fp16 `[O, B]` times integers up to `most` `[O, B, S]`."""
    unit_OB = to_half(value_OBS.max(axis=2) / np.float32(most))
    unit_OB1 = unit_OB.astype(np.float32)[:, :, None]
    ratio_OBS = np.divide(value_OBS, unit_OB1, out=np.zeros_like(value_OBS), where=unit_OB1 > 0)
    return unit_OB, np.clip(np.rint(ratio_OBS), 0, most).astype(np.uint8)


def _group_scales(scale_OG: Scales, factor: float, sub_blocks: int) -> NDArray[np.float32]:
    """`factor` times the scales of 256 columns, each repeated for its sub-blocks `[O, B, S]`."""
    scale_OBG = scale_OG.astype(np.float32).reshape(scale_OG.shape[0], -1, 4)
    return np.repeat(scale_OBG * np.float32(factor), sub_blocks // 4, axis=2)


def _packed_six_bits(scale_OBS: NDArray[np.uint8], min_OBS: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Eight scales and eight minima of 6 bits in 12 bytes: the last four lend their top bits."""
    top = np.uint8(6)
    low_s, high_s = scale_OBS[:, :, :4], scale_OBS[:, :, 4:]
    low_m, high_m = min_OBS[:, :, :4], min_OBS[:, :, 4:]
    parts = [
        low_s | high_s >> 4 << top,
        low_m | high_m >> 4 << top,
        high_s & 15 | (high_m & 15) << 4,
    ]
    return np.concatenate(parts, axis=2)


def _k_with_minimum(
    code_OI: Codes, scale_OG: Scales, planes: int
) -> tuple[Codes, list[NDArray[np.generic]]]:
    """Codes of 256 columns as `[O, B, 4, 2, 32]`, and the head of the block."""
    d_OB, s_OBS = _small_multiples(_group_scales(scale_OG, 2.0 ** (8 - planes), 8), 63)
    dmin_OB, m_OBS = _small_multiples(_group_scales(scale_OG, 128 - 2.0 ** (7 - planes), 8), 63)
    u = code_OI.reshape(code_OI.shape[0], -1, 4, 2, 32)
    return u, [_halves(d_OB), _halves(dmin_OB), _packed_six_bits(s_OBS, m_OBS)]


def _pairs(u: Codes) -> NDArray[np.uint8]:
    """Low four bits of 64 numbers: number j below number j + 32 in one byte."""
    low = u[:, :, :, 0] & 15 | (u[:, :, :, 1] & 15) << 4
    return cast(Codes, low.reshape(*u.shape[:2], -1))


def _q4_k(code_OI: Codes, scale_OG: Scales, planes: int) -> NDArray[np.uint8]:
    u, head = _k_with_minimum(code_OI, scale_OG, planes)
    return _bytes(*head, _pairs(u))


def _q5_k(code_OI: Codes, scale_OG: Scales, planes: int) -> NDArray[np.uint8]:
    u, head = _k_with_minimum(code_OI, scale_OG, planes)
    # Byte l holds bit 4 of column l of each of the eight runs of 32, in order from bit 0.
    top = (u >> 4 & 1).reshape(*u.shape[:2], 8, 32).swapaxes(2, 3)
    return _bytes(*head, np.packbits(top, axis=3, bitorder="little"), _pairs(u))


def _q6_k(code_OI: Codes, scale_OG: Scales, planes: int) -> NDArray[np.uint8]:
    d_OB, s_OBS = _small_multiples(_group_scales(scale_OG, 2.0 ** (7 - planes), 16), 127)
    q = (_odd_numbers(code_OI, planes) + 32).astype(np.uint8)
    # Each half of 128 columns is four runs of 32.
    q = q.reshape(q.shape[0], -1, 2, 4, 32)
    low = np.stack([q[:, :, :, 0] & 15 | (q[:, :, :, 2] & 15) << 4,
                    q[:, :, :, 1] & 15 | (q[:, :, :, 3] & 15) << 4], axis=3)  # fmt: skip
    high = (q[:, :, :, 0] >> 4 | q[:, :, :, 1] >> 4 << 2 | q[:, :, :, 2] >> 4 << 4
            | q[:, :, :, 3] >> 4 << 6)  # fmt: skip
    flat = (*q.shape[:2], -1)
    return _bytes(low.reshape(flat), high.reshape(flat), s_OBS.astype(np.int8), _halves(d_OB))


#: Every type that planes are written into, by the name users give it.
BLOCK_TYPES: dict[str, BlockType] = {
    kind.name: kind
    for kind in (
        BlockType("Q4_0", 32, 18, 3, True, _q4_0),
        BlockType("Q5_0", 32, 22, 4, True, _q5_0),
        BlockType("Q8_0", 32, 34, 7, True, _q8_0),
        BlockType("Q4_1", 32, 20, 4, False, _q4_1),
        BlockType("Q5_1", 32, 24, 5, False, _q5_1),
        BlockType("Q4_K", 256, 144, 4, False, _q4_k),
        BlockType("Q5_K", 256, 176, 5, False, _q5_k),
        BlockType("Q6_K", 256, 210, 5, False, _q6_k),
    )
}


def smallest_exact(planes: int, columns: int) -> BlockType | None:
    """The smallest type whose blocks hold `planes` planes of rows of `columns` to the last bit."""
    fitting = [
        kind
        for kind in BLOCK_TYPES.values()
        if kind.is_exact and planes <= kind.most_planes and columns % kind.columns == 0
    ]
    return min(fitting, key=lambda kind: kind.num_bytes / kind.columns, default=None)
