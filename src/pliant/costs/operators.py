"""`Operator`: one operation of a forward pass, with exact operations, bytes and tensors."""

from __future__ import annotations

from typing import Literal

import msgspec

from pliant.bits.cache import CacheFormat
from pliant.errors import UsageError

#: What an operator does: the class that a device has a rate and a calibration for.
Kind = Literal[
    "embed", "norm", "quantize", "product", "bias", "rotate", "store", "scores", "softmax", "mix",
    "gate", "add", "sample",
]  # fmt: skip
#: The arithmetic an operator is done in.
Arithmetic = Literal["int8", "fp32", "fp16"]


class Widths(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bytes of a stored activation and cache value, and the arithmetic of products.

    Weights have a width of their own in the bit plan: four widths that published tools merge into
    one. `cache` is how keys and values are held. Products take activations as int8 codes with a
    scale per 64 (`int8`), or as they are (`fp32`, `fp16`).
    """

    activation_bytes: int = 4
    cache: CacheFormat = CacheFormat()
    arithmetic: Arithmetic = "int8"

    def __post_init__(self) -> None:
        if self.activation_bytes not in (2, 4):
            raise UsageError(
                f"Activations of {self.activation_bytes} bytes were asked for; use 2 or 4."
            )

    @classmethod
    def of_cache(cls, bits: int) -> Widths:
        """The engine's widths with cached values of `bits` bits."""
        return cls(cache=CacheFormat(bits=bits))

    def entry_bytes(self, head_dim: int) -> int:
        """Bytes of the key, or of the value, of one token and group as it is written."""
        return self.cache.row_bytes(head_dim)


class Operator(msgspec.Struct, frozen=True, kw_only=True):
    """One operator, `count` times in a step (once for each block like its own).

    Figures are of one time. `operations` counts multiplications and additions apart: 2 for each
    weight and token of a product. Bytes are split by what they hold: `weight_bytes` from storage,
    `cache_read_bytes` and `cache_write_bytes` of keys and values, `input_bytes` and `output_bytes`
    of activations. Products have their sizes: `rows`, `columns`, `tokens`, `planes` (0 elsewhere);
    attention has `visible` (entries seen, summed over tokens) and `heads` and `groups`; others
    have `values`, the numbers they write. `reads` and `writes` are names of tensors of the graph.
    """

    name: str
    kind: Kind
    count: int = 1
    operations: int
    arithmetic: Arithmetic = "fp32"
    weight_bytes: int = 0
    input_bytes: int = 0
    output_bytes: int = 0
    cache_read_bytes: int = 0
    cache_write_bytes: int = 0
    rows: int = 0
    columns: int = 0
    tokens: int = 0
    planes: int = 0
    visible: int = 0
    heads: int = 0
    groups: int = 0
    values: int = 0
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()

    @property
    def memory_bytes(self) -> int:
        """Bytes that cannot stay in caches from step to step: weights, keys and values."""
        return self.weight_bytes + self.cache_read_bytes + self.cache_write_bytes

    @property
    def activation_bytes(self) -> int:
        """Bytes of activations read and written."""
        return self.input_bytes + self.output_bytes
