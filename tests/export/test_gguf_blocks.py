"""Blocks made of plane codes, read back by the dequantizers of the package `gguf`."""

from __future__ import annotations

import os
import subprocess

import numpy as np
import pytest

from pliant.bits import UniformCodec
from pliant.errors import UnsupportedError
from pliant.export.gguf_blocks import BLOCK_TYPES, smallest_exact

gguf = pytest.importorskip("gguf", reason="the package gguf of the extra `export` is missing")

CODEC = UniformCodec()
PEER_PYTHON = os.environ.get("PLIANT_PEER_PYTHON", "")
CASES = [(kind, planes) for kind in BLOCK_TYPES.values()
         for planes in range(1, kind.most_planes + 1)]  # fmt: skip
#: Largest relative RMS error of weights: half a step of the scale's bits at the largest scale,
#: twice where a minimum is rounded too and cancels against it.
ROUNDING = {"Q4_1": 2.0**-9, "Q5_1": 2.0**-9, "Q4_K": 2 / 63, "Q5_K": 2 / 63, "Q6_K": 1 / 127}


@pytest.fixture(scope="module")
def matrix():
    weight_OI = np.random.default_rng(0).normal(0, 0.05, (37, 512)).astype(np.float32)
    weight_OI[3] = 0
    weight_OI[5, 64:128] = 0
    return CODEC.encode(weight_OI)


@pytest.mark.parametrize(("kind", "planes"), CASES, ids=[f"{k.name}-{p}" for k, p in CASES])
def test_blocks_stand_for_the_planes(kind, planes, matrix) -> None:
    code_OI, scale_OG = CODEC.codes(matrix, planes)
    blocks = kind.write(code_OI, scale_OG, planes)
    assert blocks.shape == (37, 512 // kind.columns * kind.num_bytes)
    assert blocks.nbytes == kind.bytes_of(37, 512)
    assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind.name]] == (
        kind.columns, kind.num_bytes,
    )  # fmt: skip
    found = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[kind.name])
    expected = CODEC.decode(matrix, planes)
    if kind.is_exact:
        np.testing.assert_array_equal(found, expected)
    else:
        error = np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2))
        assert error <= ROUNDING[kind.name]


#: Blocks on stdin become float32 on stdout, by the library that llama-cpp-python brings.
READ_BY_LLAMA_CPP = """
import ctypes, sys
from pathlib import Path
import llama_cpp
folder = Path(llama_cpp.__file__).parent / "lib"
library = ctypes.CDLL(str(next(folder.glob("libggml-base*"))))
blocks = sys.stdin.buffer.read()
values = (ctypes.c_float * int(sys.argv[2]))()
function = getattr(library, "dequantize_row_" + sys.argv[1].replace("Q", "q"))
function.argtypes = [ctypes.c_char_p, ctypes.POINTER(ctypes.c_float), ctypes.c_int64]
function(blocks, values, len(values))
sys.stdout.buffer.write(bytes(values))
"""


@pytest.mark.skipif(not PEER_PYTHON, reason="PLIANT_PEER_PYTHON names no interpreter")
@pytest.mark.parametrize("kind", BLOCK_TYPES.values(), ids=lambda kind: kind.name)
def test_llama_cpp_reads_the_same_weights(kind, matrix) -> None:
    """Its own dequantizers, not those of the Python package: exact types to the last bit."""
    planes = kind.most_planes
    blocks = kind.write(*CODEC.codes(matrix, planes), planes)
    command = [PEER_PYTHON, "-c", READ_BY_LLAMA_CPP, kind.name, str(37 * 512)]
    ran = subprocess.run(command, input=blocks.tobytes(), capture_output=True, check=False)
    assert ran.returncode == 0, ran.stderr.decode()
    found = np.frombuffer(ran.stdout, np.float32).reshape(37, 512)
    expected = CODEC.decode(matrix, planes)
    if kind.is_exact:
        np.testing.assert_array_equal(found, expected)
    else:
        error = np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2))
        assert 0 < error <= ROUNDING[kind.name]


def test_each_plane_count_has_its_smallest_exact_type() -> None:
    chosen = [smallest_exact(planes, 64) for planes in range(1, 9)]
    names = [kind.name if kind else "none" for kind in chosen]
    assert names == ["Q4_0"] * 3 + ["Q5_0"] + ["Q8_0"] * 3 + ["none"]
    assert smallest_exact(3, 48) is None


def test_a_code_too_wide_would_not_be_exact(matrix) -> None:
    """The stated limits are sharp: one plane more does not survive."""
    for kind in BLOCK_TYPES.values():
        if kind.is_exact:
            planes = kind.most_planes + 1
            blocks = kind.write(*CODEC.codes(matrix, planes), planes)
            found = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[kind.name])
            assert not np.array_equal(found, CODEC.decode(matrix, planes))


def test_scales_beyond_half_precision_are_refused() -> None:
    code_OI, scale_OG = np.zeros((1, 64), np.uint8), np.full((1, 1), 60_000, np.float16)
    with pytest.raises(UnsupportedError, match="65504"):
        BLOCK_TYPES["Q4_0"].write(code_OI, scale_OG, 3)
