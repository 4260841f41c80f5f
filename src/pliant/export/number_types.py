"""How float32 becomes the bytes of a tensor file: float32, float16 and bfloat16 in NumPy."""

from __future__ import annotations

from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray

from pliant.errors import UnsupportedError, UsageError

NumberType = Literal["bfloat16", "float16", "float32"]

#: Bytes of one number.
NUMBER_BYTES: dict[NumberType, int] = {"bfloat16": 2, "float16": 2, "float32": 4}
#: Largest relative error of one rounded weight: half a step of the last bit kept.
ROUNDING: dict[NumberType, float] = {"bfloat16": 2.0**-8, "float16": 2.0**-11, "float32": 0.0}
_ALIASES: dict[str, NumberType] = {
    "bf16": "bfloat16", "fp16": "float16", "f16": "float16", "fp32": "float32", "f32": "float32",
    "bfloat16": "bfloat16", "float16": "float16", "float32": "float32",
}  # fmt: skip


def parse_number_type(text: str) -> NumberType:
    """A type by any of its usual names, such as bf16; `UsageError` for others."""
    if text.lower() not in _ALIASES:
        raise UsageError(f"{text!r} is no number type; choose bf16, fp16 or fp32.")
    return _ALIASES[text.lower()]


def stored_numbers(value: NDArray[np.float32], kind: NumberType, name: str) -> NDArray[np.generic]:
    """`value` rounded to nearest as `kind`, of its shape; bfloat16 as its bits in uint16.

    `UnsupportedError` for a weight that float16 cannot hold, with the type that can.
    """
    if kind == "float32":
        return np.ascontiguousarray(value, np.float32)
    if kind == "bfloat16":
        return bfloat16_bits(value)
    with np.errstate(over="ignore"):
        half = value.astype(np.float16)
    if not np.isfinite(half).all():
        raise UnsupportedError(
            f"{name} holds weights up to {np.abs(value).max():.4g}; float16 ends at 65504. "
            "Export as bf16 or fp32."
        )
    return half


def bfloat16_bits(value: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The upper halves of finite float32 numbers, rounded to nearest, ties to even."""
    bits = np.ascontiguousarray(value, np.float32).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))
    return cast(NDArray[np.uint16], (rounded >> np.uint32(16)).astype(np.uint16))


def bfloat16_values(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """The numbers that `bfloat16_bits` stands for."""
    return cast(NDArray[np.float32], (bits.astype(np.uint32) << np.uint32(16)).view(np.float32))
