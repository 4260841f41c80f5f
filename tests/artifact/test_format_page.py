"""The worked example of docs/format.md is what the code does."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pliant.artifact.tensor_file import lay_out
from pliant.artifact.tensors import TensorType
from pliant.bits import UniformCodec

PAGE = (Path(__file__).parents[2] / "docs" / "format.md").read_text()


def test_the_encoded_matrix():
    codec = UniformCodec()
    encoded = codec.encode(np.array([[1, -0.5, 0.25, 0, 0.1]], np.float32))
    for index, plane in enumerate(encoded.planes):
        assert f"plane {index}   {plane[:4].tobytes().hex(' ')}" in PAGE
        assert not plane[4:].any()
    assert f"0x{encoded.scales[0]:04x}" in PAGE
    assert f"`{encoded.scales[:1].tobytes().hex(' ')}` and 62 zeros" in PAGE
    codes = [sum(int(plane[column % 4] >> column // 4 & 1) << 7 - index
                 for index, plane in enumerate(encoded.planes)) for column in range(5)]  # fmt: skip
    assert "the codes are {}, {}, {}, {} and {}".format(*codes) in PAGE
    for planes, digits in ((2, 3), (8, 4)):
        values = ", ".join(f"{value:.{digits}f}" for value in codec.decode(encoded, planes)[0])
        assert values in PAGE


def test_the_file():
    kind = TensorType("U8", (1, 1, 128))
    file = lay_out({"embedding": kind, "blocks.0.q": kind})
    assert f"is {file.size} bytes: `{file.header[:8].hex(' ')}`" in PAGE
    assert f"(N = {len(file.header) - 8})" in PAGE
    text = file.header[8:].decode()
    assert f"\n    {text.rstrip()}\n" in PAGE
    assert f"and {len(text) - len(text.rstrip())} spaces up to byte {len(file.header)}" in PAGE
    assert f"`blocks.0.q` begins at {file.places['blocks.0.q'].begin}" in PAGE
