"""A safetensors file as bytes: where each tensor lies, computed for writing, checked on reading.

A file is `N` as 8 little-endian bytes, `N` bytes of JSON, then the data of all tensors without
holes. The format has no alignment, so it is made with explicit tensors `_pad.0`, `_pad.1`, ...
This is a reader of its own because it must refuse whatever `docs/format.md` refuses, and say why.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from pliant.artifact.tensors import TensorType
from pliant.errors import ArtifactError

#: Every tensor starts at a multiple of this file offset: one cache line, one AVX-512 vector.
ALIGNMENT_BYTES = 64
#: Large tensors start on a page of their own, so that reading one never pages in its neighbour.
PAGE_BYTES = 4096
LARGE_TENSOR_BYTES = 256 * 1024
#: No header of a real model comes near: 1000 blocks have 1 MB.
MAX_HEADER_BYTES = 16 * 1024 * 1024

ITEM_BYTES = {"U8": 1, "F16": 2, "F32": 4}
_METADATA = {"__metadata__": {"pliant_format": "1"}}
_NAME = re.compile(r"[a-z][a-z0-9_.]{0,127}")
_PADDING_NAME = re.compile(r"_pad\.[0-9]{1,9}")


class TensorPlace(msgspec.Struct, frozen=True):
    """A tensor's type and the bytes `[begin, end)` of the file that hold it."""

    type: TensorType
    begin: int
    end: int


class TensorFile(msgspec.Struct, frozen=True):
    """A file before its data: the bytes up to the first tensor, the places, and the whole size."""

    header: bytes
    places: dict[str, TensorPlace]
    size: int


def lay_out(tensors: Mapping[str, TensorType]) -> TensorFile:
    """The file that holds `tensors` in the given order, padded to their alignments.

    Places depend on the length of the header and the header on the places (padding tensors are
    named in it), so the header is given room until it fits.
    """
    data_begin = 0
    while True:
        table, places, end = _place(tensors, data_begin)
        text = json.dumps(_METADATA | table, separators=(",", ":")).encode()
        needed = -(-(8 + len(text)) // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        if needed <= data_begin:
            header = (data_begin - 8).to_bytes(8, "little") + text.ljust(data_begin - 8)
            return TensorFile(header, places, end)
        data_begin = needed


def _place(
    tensors: Mapping[str, TensorType], data_begin: int
) -> tuple[dict[str, Any], dict[str, TensorPlace], int]:
    """Header entries, places, and the end of the file for data that begins at `data_begin`."""
    table: dict[str, Any] = {}
    places: dict[str, TensorPlace] = {}
    position, num_pads = data_begin, 0
    for name, kind in tensors.items():
        size = math.prod(kind.shape) * ITEM_BYTES[kind.dtype]
        unit = PAGE_BYTES if size >= LARGE_TENSOR_BYTES else ALIGNMENT_BYTES
        gap = -position % unit
        if gap:
            table[f"_pad.{num_pads}"] = _entry("U8", (gap,), position - data_begin, gap)
            num_pads += 1
            position += gap
        table[name] = _entry(kind.dtype, kind.shape, position - data_begin, size)
        places[name] = TensorPlace(kind, position, position + size)
        position += size
    return table, places, position


def _entry(dtype: str, shape: tuple[int, ...], begin: int, size: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, begin + size]}


def header_bytes(start: bytes, file_size: int, file: str) -> int:
    """Bytes before the data of a file that begins with `start` (8 bytes); `ArtifactError`."""
    if len(start) < 8:
        raise ArtifactError(f"{file} is {file_size} bytes long; it is truncated.")
    length = int.from_bytes(start[:8], "little")
    if length > MAX_HEADER_BYTES or 8 + length > file_size:
        raise ArtifactError(
            f"{file} states a header of {length} bytes; the file has {file_size} and at most "
            f"{MAX_HEADER_BYTES} are allowed. It is truncated or not a safetensors file."
        )
    return 8 + length


def parse_header(
    header: bytes, file_size: int, expected: Mapping[str, TensorType], file: str
) -> dict[str, TensorPlace]:
    """The places of the `expected` tensors in a file whose data begins after `header`.

    Everything is checked: names, types and shapes are the expected ones and no others, each size
    is that of its shape, and the tensors fill the file from the header to its end without overlap
    or hole, at multiples of 64 bytes. `ArtifactError` names the first thing that is not so.
    """
    places: dict[str, TensorPlace] = {}
    for name, entry in _decode(header[8:], file).items():
        if name != "__metadata__":
            places[name] = _read_entry(name, entry, len(header), file_size, file)
    _check_cover(places, len(header), file_size, file)
    stored = {name: place for name, place in places.items() if not _PADDING_NAME.fullmatch(name)}
    for name in expected:
        if name not in stored:
            raise ArtifactError(f"{file} lacks the tensor {name} that the spec asks for.")
    for name, place in stored.items():
        if name not in expected:
            raise ArtifactError(f"{file} holds the tensor {name}, which the spec does not know.")
        if place.type != expected[name]:
            raise ArtifactError(
                f"{name} in {file} is {place.type.dtype}{list(place.type.shape)}; the spec asks "
                f"for {expected[name].dtype}{list(expected[name].shape)}."
            )
        if place.begin % ALIGNMENT_BYTES:
            raise ArtifactError(
                f"{name} in {file} begins at byte {place.begin}, not at a multiple of "
                f"{ALIGNMENT_BYTES}."
            )
    return stored


def _decode(text: bytes, file: str) -> dict[str, Any]:
    """The header as a dictionary, duplicate names refused."""

    def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a name occurs twice")
        return found

    try:
        table = json.loads(text.decode("ascii"), object_pairs_hook=without_duplicates)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"The header of {file} is not a table of tensors: {error}.") from error
    if not isinstance(table, dict):
        raise ArtifactError(f"The header of {file} is not a table of tensors.")
    return table


def _read_entry(name: str, entry: Any, data_begin: int, file_size: int, file: str) -> TensorPlace:
    """One row of the table, its names, types and sizes checked."""
    if not (_NAME.fullmatch(name) or _PADDING_NAME.fullmatch(name)):
        raise ArtifactError(f"{file} holds a tensor named {name[:80]!r}, which is not a name.")
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [begin, end], **rest}:
            numbers = [*shape, begin, end]
            plain = not rest and all(type(n) is int and 0 <= n < 1 << 53 for n in numbers)
        case _:
            plain = False
    if not plain or len(shape) > 8:
        raise ArtifactError(f"The entry of {name} in {file} is not a dtype, shape and two offsets.")
    if dtype not in ITEM_BYTES:
        raise ArtifactError(f"{name} in {file} has dtype {dtype[:20]!r}; {[*ITEM_BYTES]} exist.")
    size = math.prod(shape) * ITEM_BYTES[dtype]
    if end - begin != size or end > file_size - data_begin:
        raise ArtifactError(
            f"{name} in {file} claims the bytes {begin} to {end} of {file_size - data_begin}; "
            f"{dtype}{shape} has {size} bytes."
        )
    return TensorPlace(TensorType(dtype, tuple(shape)), data_begin + begin, data_begin + end)


def _check_cover(
    places: Mapping[str, TensorPlace], data_begin: int, file_size: int, file: str
) -> None:
    """Tensors follow each other from the header to the end of the file."""
    position = data_begin
    for name, place in sorted(places.items(), key=lambda item: (item[1].begin, item[1].end)):
        if place.begin != position:
            what = "overlaps the one before" if place.begin < position else "leaves a hole before"
            raise ArtifactError(f"{name} in {file} {what}: it begins at byte {place.begin}.")
        position = place.end
    if position != file_size:
        raise ArtifactError(f"{file} has {file_size - position} bytes that belong to no tensor.")
