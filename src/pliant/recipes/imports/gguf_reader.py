"""`GgufFile`: metadata and tensors of a GGUF file from a stranger, every size checked.

The file is mapped. Every count and length is compared with the bytes that are left before anything
is made of it, so a file that lies about its sizes is refused and never allocated for.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from pliant.errors import CheckpointError, UnsupportedError
from pliant.export.number_types import bfloat16_values
from pliant.recipes.imports.mapped_file import mapped

_VERSIONS = (2, 3)
_MOST_HEADER_BYTES = 256 * 1024 * 1024
_MOST_DIMENSIONS = 4
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q",
            11: "<q", 12: "<d"}  # fmt: skip
_STRING, _ARRAY = 8, 9
#: Number of a tensor type: its name, weights in a block, bytes of a block.
_TYPES = {0: ("F32", 1, 4), 1: ("F16", 1, 2), 8: ("Q8_0", 32, 34), 30: ("BF16", 1, 2)}


class GgufTensor(msgspec.Struct, frozen=True):
    """Type, shape (rows first) and place of a tensor's bytes in the file."""

    kind: str
    shape: tuple[int, ...]
    begin: int
    end: int


class GgufFile:
    """A mapped file: `metadata` by key (arrays are lists), `tensors` by name, values unread."""

    def __init__(self, path: Path) -> None:
        """`CheckpointError` for a damaged file, `UnsupportedError` for types that are not read."""
        self.path = path
        self._bytes = mapped(path)
        try:
            self.metadata, self.tensors = self._read_header()
        except (struct.error, UnicodeDecodeError) as error:
            raise self._damaged(f"its header cannot be read: {error}") from error

    def tensor(self, name: str) -> NDArray[np.float32]:
        """The values of a tensor, float32 of its shape."""
        found = self.tensors[name]
        raw = np.frombuffer(self._bytes, np.uint8, found.end - found.begin, found.begin)
        match found.kind:
            case "F32":
                value = raw.view("<f4").astype(np.float32)
            case "F16":
                value = raw.view("<f2").astype(np.float32)
            case "BF16":
                value = bfloat16_values(raw.view("<u2"))
            case _:
                block = raw.reshape(-1, 34)
                scale_B1 = np.ascontiguousarray(block[:, :2]).view("<f2").astype(np.float32)
                value = scale_B1 * block[:, 2:].view(np.int8).astype(np.float32)
        return value.reshape(found.shape)

    def _read_header(self) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
        self._place = 0
        if self._take(4) != b"GGUF":
            raise self._damaged("it does not begin with GGUF")
        version = self._scalar("<I")
        if version not in _VERSIONS:
            raise UnsupportedError(f"{self.path} is GGUF version {version}; 2 and 3 are read.")
        # A tensor's entry takes 32 bytes at least, that of a key 13.
        num_tensors, num_keys = self._count(32), self._count(13)
        metadata: dict[str, Any] = {}
        for _ in range(num_keys):
            key = self._string()
            if key in metadata:
                raise self._damaged(f"it has the key {key[:80]!r} twice")
            metadata[key] = self._value(self._scalar("<I"))
        entries = [self._entry() for _ in range(num_tensors)]
        return metadata, self._places(metadata, entries)

    def _places(
        self, metadata: dict[str, Any], entries: list[tuple[str, tuple[int, ...], int, int]]
    ) -> dict[str, GgufTensor]:
        """Where the bytes of each tensor lie, all of them inside the file."""
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or not 1 <= alignment <= 1 << 16:
            raise self._damaged(f"its alignment is {alignment!r}")
        start = -(-self._place // alignment) * alignment
        tensors: dict[str, GgufTensor] = {}
        for name, shape, number, offset in entries:
            if name in tensors:
                raise self._damaged(f"it has the tensor {name[:80]!r} twice")
            if number not in _TYPES:
                raise UnsupportedError(
                    f"{name[:80]} of {self.path} has the tensor type number {number}; a build "
                    "reads F32, F16, BF16 and Q8_0. Give the file before it was quantized."
                )
            kind, block, num_bytes = _TYPES[number]
            if shape[-1] % block:
                raise self._damaged(f"{name[:80]} has rows of {shape[-1]}, no blocks of {block}")
            begin = start + offset
            end = begin + math.prod(shape) // block * num_bytes
            if end > len(self._bytes):
                raise self._damaged(
                    f"{name[:80]} ends at byte {end} and the file at {len(self._bytes)}"
                )
            tensors[name] = GgufTensor(kind, shape, begin, end)
        return tensors

    def _entry(self) -> tuple[str, tuple[int, ...], int, int]:
        """Name, shape, type number and offset of a tensor."""
        name = self._string()
        dimensions = self._scalar("<I")
        if not 1 <= dimensions <= _MOST_DIMENSIONS:
            raise self._damaged(f"{name[:80]} has {dimensions} dimensions")
        sizes = [self._scalar("<Q") for _ in range(dimensions)]
        if min(sizes) < 1:
            raise self._damaged(f"{name[:80]} has a dimension of 0")
        return name, tuple(reversed(sizes)), self._scalar("<I"), self._scalar("<Q")

    def _value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self._scalar(_SCALARS[kind])
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            raise self._damaged(f"it has a value of the unknown type {kind}")
        inner = self._scalar("<I")
        if inner in _SCALARS:
            size = struct.calcsize(_SCALARS[inner])
            content = self._take(self._count(size) * size)
            return np.frombuffer(content, _SCALARS[inner]).tolist()
        if inner != _STRING:
            raise self._damaged(f"it has an array of values of the type {inner}")
        return [self._string() for _ in range(self._count(8))]

    def _scalar(self, form: str) -> Any:
        (value,) = struct.unpack(form, self._take(struct.calcsize(form)))
        return value

    def _string(self) -> str:
        return self._take(self._count(1)).decode()

    def _count(self, item_bytes: int) -> int:
        """A number of items of at least so many bytes, all of which are still to come."""
        count = int(self._scalar("<Q"))
        if count * item_bytes > len(self._bytes) - self._place:
            raise self._damaged(
                f"at byte {self._place} it states {count} items and {len(self._bytes)} bytes are "
                "all there is"
            )
        return count

    def _take(self, size: int) -> bytes:
        end = self._place + size
        if end > min(len(self._bytes), _MOST_HEADER_BYTES):
            raise self._damaged(f"its header goes on at byte {end}, where it cannot")
        taken = self._bytes[self._place : end]
        self._place = end
        return taken

    def _damaged(self, reason: str) -> CheckpointError:
        return CheckpointError(f"{self.path} is not a whole GGUF file: {reason}. Get it again.")
