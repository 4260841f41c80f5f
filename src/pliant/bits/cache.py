"""Keys and values of a cache: their formats, the bytes of each, and how few bits are rounded to.

Shape suffixes: N entries, D channels of a head.
"""

from __future__ import annotations

from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from pliant.bits.layout import ceil_div
from pliant.errors import UsageError

CacheType = Literal["float32", "float16", "int8", "int4", "int3", "int2"]
#: Bits of a key or value, by the name of its type.
CACHE_BITS: dict[CacheType, int] = {
    "float32": 32, "float16": 16, "int8": 8, "int4": 4, "int3": 3, "int2": 2,
}  # fmt: skip
#: Entries that become codes together (native/kernels/cache_codes.h).
CACHE_UNIT = 64
#: Values that share a scale and a minimum: along entries for keys, along channels for values.
CACHE_GROUP = 32
#: What a cache holds of an entry beside keys and values: position, token and log-weight.
ENTRY_BYTES = 12


class CacheFormat(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a cache holds keys and values: all as numbers of 32 or 16 bits or as int8 with an fp32
    scale for each key and value of a group; or, with 4, 3 or 2 bits, the last `window` to
    `window + 63` entries as float16 and those before them as codes, 64 entries at a time.

    Keys have a scale and a minimum for each channel of 32 entries, values for 32 channels of each
    entry, all in fp16: a bit per value where the head size is a multiple of 32. `window` is a
    multiple of 64. Source: KIVI (Liu et al. 2024, arXiv:2402.02750). `UsageError` for other bits.
    """

    bits: int = 16
    window: int = 64

    def __post_init__(self) -> None:
        if self.bits not in CACHE_BITS.values():
            raise UsageError(
                f"A cache of {self.bits} bits was asked for; use one of "
                f"{', '.join(map(str, CACHE_BITS.values()))}."
            )
        if self.window < 0 or self.window % CACHE_UNIT:
            raise UsageError(
                f"A window of {self.window} tokens was asked for; use 0 or a multiple of "
                f"{CACHE_UNIT}."
            )

    @classmethod
    def of_type(cls, cache_type: str, window: int = 64) -> CacheFormat:
        """The format of this name; `UsageError` lists the names there are."""
        if cache_type not in CACHE_BITS:
            raise UsageError(
                f"A cache of {cache_type!r} was asked for; use one of {', '.join(CACHE_BITS)}."
            )
        return cls(bits=CACHE_BITS[cache_type], window=window)

    def but(self, bits: int | None = None, window: int | None = None) -> CacheFormat:
        """The same with other bits or another window, where they are given.

        A window means nothing to 8 bits and more, and is then the usual one.
        """
        found = CacheFormat(
            bits=self.bits if bits is None else bits,
            window=self.window if window is None else window,
        )
        return found if found.is_coded else CacheFormat(bits=found.bits)

    def __str__(self) -> str:
        """Such as `int4 behind the last 64 tokens`."""
        return f"{self.type} behind the last {self.window} tokens" if self.is_coded else self.type

    @property
    def type(self) -> CacheType:
        """Its name."""
        return next(name for name, bits in CACHE_BITS.items() if bits == self.bits)

    @property
    def is_coded(self) -> bool:
        """Whether entries behind the window are codes."""
        return self.bits < 8

    def row_bytes(self, head_dim: int) -> int:
        """Bytes of one key or value that is no code, its scale included."""
        if self.is_coded:
            return 2 * head_dim
        return head_dim * self.bits // 8 + (4 if self.bits == 8 else 0)

    def unit_bytes(self, head_dim: int) -> int:
        """Bytes of the keys, or of the values, of `CACHE_UNIT` coded entries of one group."""
        keys = CACHE_UNIT // CACHE_GROUP * 2 * head_dim
        values = ceil_div(head_dim, CACHE_GROUP) * 2 * CACHE_UNIT
        return CACHE_UNIT * self.bits // 8 * head_dim + 2 * max(keys, values)

    def effective_bits(self, head_dim: int) -> float:
        """Bits of a key or value behind the window, scales included."""
        if self.is_coded:
            return 8 * self.unit_bytes(head_dim) / (CACHE_UNIT * head_dim)
        return 8 * self.row_bytes(head_dim) / head_dim

    def num_bytes(self, groups: int, head_dim: int, capacity: int) -> int:
        """What the engine reserves for `capacity` entries of all `groups` of all blocks."""
        rows, units = capacity, 0
        if self.is_coded:
            held = self.window // CACHE_UNIT
            rows = min(held + 2, ceil_div(capacity, CACHE_UNIT)) * CACHE_UNIT
            units = max(0, (capacity - 1) // CACHE_UNIT - held)
        one = rows * self.row_bytes(head_dim) + units * self.unit_bytes(head_dim)
        return 2 * groups * one + ENTRY_BYTES * capacity

    def folded(self, entry: int) -> int:
        """Entries that a token at `entry` reads as codes: the first so many."""
        if not self.is_coded:
            return 0
        return max(0, entry - entry % CACHE_UNIT - self.window)

    def read_bytes(self, head_dim: int, first: int, end: int) -> int:
        """Bytes of the keys, or of the values, of one group that a token at entry `end - 1` reads
        where it sees the entries from `first` on; units of codes are read whole."""
        folded = self.folded(end - 1)
        units = max(0, folded // CACHE_UNIT - first // CACHE_UNIT)
        return units * self.unit_bytes(head_dim) + (end - max(first, folded)) * self.row_bytes(
            head_dim
        )


def bits_of(cache_type: str | None) -> int | None:
    """Bits of a type by its name, None of None; `UsageError` lists the names there are."""
    return None if cache_type is None else CacheFormat.of_type(cache_type).bits


class SequenceCache(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What caches of one engine take and can do: a format, KV groups of all blocks, head size."""

    format: CacheFormat
    groups: int
    head_dim: int

    def num_bytes(self, capacity: int) -> int:
        """What a cache for `capacity` tokens reserves, to the byte."""
        return self.format.num_bytes(self.groups, self.head_dim, capacity)

    def exact_length(self, length: int, longest: int) -> int:
        """The most tokens, `length` at most, to which a cache that has held `longest` can be cut
        and be as if it had never held more; 0 where there are none.

        Codes stay as they are, but float16 rows of older units are gone, and a window of them is
        what a token at the cut would see. Without a window whole units suffice.
        """
        last, held = (longest - 1) // CACHE_UNIT, self.format.window // CACHE_UNIT
        if not self.format.is_coded or last <= held + 1 or length >= (last - 1) * CACHE_UNIT:
            return length
        return 0 if held else length - length % CACHE_UNIT


def round_keys(keys_ND: NDArray[np.float32], bits: int) -> NDArray[np.float32]:
    """Keys of whole units as their codes give them back: each channel of 32 entries has its scale.

    float32 [N, D] both ways, N a multiple of 32; the readable form of native/kernels/cache_codes.h.
    """
    groups_GND = keys_ND.astype(np.float16).reshape(-1, CACHE_GROUP, keys_ND.shape[1])
    return np.concatenate([_rounded(group_ND, bits) for group_ND in groups_GND])


def round_values(values_ND: NDArray[np.float32], bits: int) -> NDArray[np.float32]:
    """Values as their codes give them back: 32 channels of an entry share a scale. As above."""
    return np.concatenate(
        [
            _rounded(values_ND[:, begin : begin + CACHE_GROUP].astype(np.float16).T, bits).T
            for begin in range(0, values_ND.shape[1], CACHE_GROUP)
        ],
        axis=1,
    )


def _rounded(x_GC: NDArray[np.float16], bits: int) -> NDArray[np.float32]:
    """Each column rounded to codes of its own range."""
    low_C, high_C = x_GC.min(axis=0), x_GC.max(axis=0)
    most = np.float32(2**bits - 1)
    span_C = high_C.astype(np.float32) - low_C.astype(np.float32)
    step_C = (span_C / most).astype(np.float16).astype(np.float32)
    divisor_C = np.where(step_C == 0, np.float32(1), step_C)
    code_GC = np.rint((x_GC.astype(np.float32) - low_C.astype(np.float32)) / divisor_C)
    code_GC = np.where(step_C == 0, np.float32(0), np.clip(code_GC, 0, most))
    # One rounding, as of a fused multiply-add: both products are exact in float64.
    exact_GC = code_GC.astype(np.float64) * step_C + low_C.astype(np.float64)
    rounded_GC: NDArray[np.float32] = exact_GC.astype(np.float32)
    return rounded_GC
