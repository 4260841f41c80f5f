"""The safetensors table: what is written is valid, and nothing else is read."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from safetensors import safe_open

from pliant.artifact.tensor_file import MAX_HEADER_BYTES, header_bytes, lay_out, parse_header
from pliant.artifact.tensors import TensorType
from pliant.errors import ArtifactError

TYPES = {
    "small": TensorType("U8", (3, 7)),
    "large": TensorType("U8", (300 * 1024,)),
    "next": TensorType("F32", (5,)),
    "last.bias": TensorType("F16", (2, 2)),
}


def read(header, size, types=TYPES):
    return parse_header(header, size, types, "X")


def table_of(file):
    return json.loads(file.header[8:])


def encoded(table):
    """A header that says `table`, as long as JSON makes it, padded to 64."""
    text = table if isinstance(table, bytes) else json.dumps(table).encode()
    text = text.ljust(-(-(8 + len(text)) // 64) * 64 - 8)
    return len(text).to_bytes(8, "little") + text


def test_round_trip_and_alignment():
    file = lay_out(TYPES)
    places = read(file.header, file.size)
    assert places == file.places
    assert all(place.begin % 64 == 0 for place in places.values())
    assert places["large"].begin % 4096 == 0
    assert len(file.header) % 64 == 0
    assert file.size == max(place.end for place in places.values())


def test_the_safetensors_library_reads_it(tmp_path):
    file = lay_out(TYPES)
    content = bytearray(file.header + bytes(file.size - len(file.header)))
    for index, place in enumerate(file.places.values()):
        content[place.begin] = index + 1
    (tmp_path / "x.safetensors").write_bytes(content)
    with safe_open(tmp_path / "x.safetensors", "np") as opened:
        for index, (name, kind) in enumerate(TYPES.items()):
            array = opened.get_tensor(name)
            assert array.shape == kind.shape
            assert array.reshape(-1).view(np.uint8)[0] == index + 1


@pytest.mark.parametrize("count", [0, 1, 2, 40, 400])
def test_any_number_of_tensors_finds_its_layout(count):
    types = {f"t{index}": TensorType("F16", (index * 37 + 1, 3)) for index in range(count)}
    file = lay_out(types)
    assert read(file.header, file.size, types) == file.places
    assert lay_out(types) == file


def broken(change):
    """Header and size after `change` has edited the table of a good file."""
    file = lay_out(TYPES)
    table = table_of(file)
    change(table)
    return encoded(table), file.size + len(encoded(table)) - len(file.header)


def set_entry(name, **fields):
    return lambda table: table[name].update(fields)


def test_reencoding_alone_is_accepted():
    assert read(*broken(lambda table: None)).keys() == TYPES.keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("small"), "leaves a hole"),
        (lambda t: t.pop("last.bias"), "belong to no tensor"),
        (lambda t: t.update(extra=t["small"]), "overlaps"),
        (set_entry("small", dtype="I8"), "has dtype 'I8'"),
        (set_entry("small", dtype="F16"), "claims the bytes"),
        (set_entry("small", dtype=3), "is not a dtype, shape and two offsets"),
        (set_entry("small", shape=[21]), "the spec asks for"),
        (set_entry("small", shape=[3, -7]), "is not a dtype"),
        (set_entry("small", shape=[3, 7.0]), "is not a dtype"),
        (set_entry("small", shape=[True, 21]), "is not a dtype"),
        (set_entry("small", shape=[1 << 70, 7]), "is not a dtype"),
        (set_entry("small", shape=[1 << 50] * 8), "claims the bytes"),
        (set_entry("small", shape=[1] * 9), "is not a dtype"),
        (set_entry("small", shape="37"), "is not a dtype"),
        (set_entry("small", data_offsets=[21, 0]), "claims the bytes"),
        (set_entry("small", data_offsets=[0, 21, 21]), "is not a dtype"),
        (set_entry("small", data_offsets=[-1, 20]), "is not a dtype"),
        (set_entry("small", data_offsets=[1 << 40, (1 << 40) + 21]), "claims the bytes"),
        (set_entry("small", more=1), "is not a dtype"),
        (set_entry("next", data_offsets=[0, 20]), "overlaps|hole"),
        (lambda t: t.update({"../../etc/passwd": t.pop("small")}), "is not a name"),
        (lambda t: t.update({"": t.pop("small")}), "is not a name"),
        (lambda t: t.update({"other": t.pop("small")}), "lacks the tensor small"),
        (lambda t: t.update(other=TYPES and {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}),
         "which the spec does not know"),
        (lambda t: t.update(small=[1, 2]), "is not a dtype"),
        (lambda t: t.update(small=None), "is not a dtype"),
    ],
)  # fmt: skip
def test_attacks_on_the_table_fail(change, message):
    header, size = broken(change)
    with pytest.raises(ArtifactError, match=message):
        read(header, size)


@pytest.mark.parametrize(
    "text",
    [b"", b"[]", b"7", b"null", b"{", b"\xff\xfe", b'{"a":1,"a":2}', b"[" * 100_000, b"{}x",
     b'{"small":' * 50_000, b'{"small": NaN}', b"9" * 10_000],
)  # fmt: skip
def test_headers_that_are_not_tables_fail(text):
    with pytest.raises(ArtifactError):
        read(len(text).to_bytes(8, "little") + text, 8 + len(text))


def test_misaligned_data_fails():
    types = {"small": TensorType("U8", (3,)), "next": TensorType("U8", (3,))}
    table = {
        "small": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},
        "next": {"dtype": "U8", "shape": [3], "data_offsets": [3, 6]},
    }
    header = encoded(table)
    with pytest.raises(ArtifactError, match="not at a multiple of 64"):
        read(header, len(header) + 6, types)


def test_empty_padding_and_other_orders_are_allowed():
    types = {"b": TensorType("U8", (64,)), "a": TensorType("U8", (64,))}
    table = {
        "a": {"dtype": "U8", "shape": [64], "data_offsets": [64, 128]},
        "_pad.7": {"dtype": "U8", "shape": [0], "data_offsets": [64, 64]},
        "b": {"dtype": "U8", "shape": [64], "data_offsets": [0, 64]},
    }
    header = encoded(table)
    places = read(header, len(header) + 128, types)
    assert places["a"].begin == places["b"].end


@pytest.mark.parametrize("size", [0, 1, 7])
def test_a_file_shorter_than_its_length_field_fails(size):
    with pytest.raises(ArtifactError, match="truncated"):
        header_bytes(bytes(size), size, "X")


@pytest.mark.parametrize("length", [93, MAX_HEADER_BYTES + 1, 1 << 63, (1 << 64) - 1])
def test_a_header_longer_than_the_file_fails(length):
    size = 100 if length < 1000 else math.inf
    with pytest.raises(ArtifactError, match="states a header"):
        header_bytes(length.to_bytes(8, "little"), size, "X")
