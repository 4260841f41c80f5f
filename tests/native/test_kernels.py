"""Every kernel path of this machine against the scalar definition, and that against NumPy.

Shape suffixes: O rows, I columns, T tokens, G groups of 64 columns, N cache entries, D head size.
The NumPy references are written from bits/layout.py and the formulas of native/kernels/kernels.h
and share no code with the kernels.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import erf

import numpy as np
import pytest

from pliant.bits.layout import (
    CHUNK_COLUMNS,
    GROUP_COLUMNS,
    TILE_ROWS,
    ceil_div,
    num_chunks,
    num_scale_groups,
    num_tiles,
)

native = pytest.importorskip("pliant._native", reason="the extension is not built")
kernels = native.kernels

UNIT = 2.0**-24  # half the spacing of fp32 at 1: the rounding error of one operation
PATHS = kernels.paths()
FAST_PATHS = [path for path in PATHS if path != "scalar"]

# rows, columns, stored columns: one row, K = 8 and 32, short last groups, prefixes of the columns.
SHAPES = [(1, 8, 8), (1, 32, 32), (33, 40, 72), (32, 64, 64), (48, 97, 260), (129, 288, 288)]


@dataclass
class StoredMatrix:
    """A matrix of random bits as it lies in a file, beyond its rows and columns too."""

    code_OI: np.ndarray
    scale_OG: np.ndarray
    planes: list[np.ndarray]
    scales: np.ndarray
    arguments: tuple[int, int, int]

    @property
    def weight_OI(self) -> np.ndarray:
        """W = s * (step * (u + 0.5) - 128), in float64."""
        step = 2 ** (8 - len(self.planes))
        columns = self.code_OI.shape[1]
        scale_OI = np.repeat(self.scale_OG.astype(np.float64), GROUP_COLUMNS, axis=1)[:, :columns]
        return scale_OI * (step * (self.code_OI + 0.5) - 128)


def stored_matrix(
    rng: np.random.Generator, num_planes: int, rows: int, columns: int, stored_columns: int
) -> StoredMatrix:
    tiles, chunks = num_tiles(rows), num_chunks(stored_columns)
    # [tile, chunk, half of the rows, row % 16, column % 4], bit = (column % 32) // 4
    bytes_TCHRB = rng.integers(0, 256, (num_planes, tiles, chunks, 2, 16, 4), dtype=np.uint8)
    bits = np.unpackbits(bytes_TCHRB[..., None], axis=-1, bitorder="little")
    # -> [plane, tile, half, row % 16, chunk, bit, column % 4]
    bit_OI = bits.transpose(0, 1, 3, 4, 2, 6, 5).reshape(
        num_planes, tiles * TILE_ROWS, chunks * CHUNK_COLUMNS
    )
    weight_of_plane = 2 ** np.arange(num_planes - 1, -1, -1)
    code_OI = np.tensordot(weight_of_plane, bit_OI.astype(np.int64), 1)
    groups = num_scale_groups(stored_columns)
    scale = rng.uniform(1e-3, 2e-2, (tiles, groups, TILE_ROWS)).astype(np.float16)
    scale_OG = scale.transpose(0, 2, 1).reshape(tiles * TILE_ROWS, groups)
    return StoredMatrix(
        code_OI[:rows, :columns],
        scale_OG[:rows, : ceil_div(columns, GROUP_COLUMNS)],
        [plane.reshape(-1) for plane in bytes_TCHRB],
        scale.reshape(-1).view(np.uint16),
        (rows, columns, stored_columns),
    )


def quantize_reference(x_TI: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    tokens, columns = x_TI.shape
    padded = np.zeros((tokens, ceil_div(columns, GROUP_COLUMNS) * GROUP_COLUMNS), np.float32)
    padded[:, :columns] = x_TI
    group_TGC = padded.reshape(tokens, -1, GROUP_COLUMNS)
    maximum_TG = np.abs(group_TGC).max(axis=-1)
    inverse_TG = np.divide(
        np.float32(127), maximum_TG, out=np.zeros_like(maximum_TG), where=maximum_TG > 0
    )
    code_TGC = np.rint(group_TGC * inverse_TG[..., None]).astype(np.int8)
    return code_TGC, maximum_TG / np.float32(127)


@pytest.mark.parametrize("num_planes", range(1, 9))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_scalar_product_is_the_formula(shape: tuple[int, int, int], num_planes: int) -> None:
    rng = np.random.default_rng(num_planes)
    matrix = stored_matrix(rng, num_planes, *shape)
    x_TI = rng.standard_normal((3, shape[1])).astype(np.float32)
    code_TGC, scale_TG = quantize_reference(x_TI)
    quantized_TI = (code_TGC * scale_TG[..., None].astype(np.float64)).reshape(3, -1)[:, : shape[1]]
    expected_TO = quantized_TI @ matrix.weight_OI.T
    y_TO = kernels.planes_int8("scalar", matrix.planes, matrix.scales, *matrix.arguments, x_TI)
    # One rounding of the scale product and one of the sum per group.
    groups = ceil_div(shape[1], GROUP_COLUMNS)
    magnitude_TO = np.abs(quantized_TI) @ np.abs(matrix.weight_OI).T
    assert np.all(np.abs(y_TO - expected_TO) <= 2 * (groups + 2) * UNIT * magnitude_TO)


@pytest.mark.parametrize("num_planes", range(1, 9))
@pytest.mark.parametrize("path", PATHS)
def test_float_product_is_the_formula(path: str, num_planes: int) -> None:
    for shape in SHAPES:
        rng = np.random.default_rng(num_planes)
        matrix = stored_matrix(rng, num_planes, *shape)
        x_TI = rng.standard_normal((6, shape[1])).astype(np.float32)
        y_TO = kernels.planes_f32(path, matrix.planes, matrix.scales, *matrix.arguments, x_TI)
        magnitude_TO = np.abs(x_TI) @ np.abs(matrix.weight_OI).T
        error_TO = np.abs(y_TO - x_TI.astype(np.float64) @ matrix.weight_OI.T)
        assert np.all(error_TO <= 2 * (shape[1] + 2) * UNIT * magnitude_TO)


@pytest.mark.parametrize("path", PATHS)
def test_rows_decode_exactly(path: str) -> None:
    rng = np.random.default_rng(3)
    for num_planes in range(1, 9):
        matrix = stored_matrix(rng, num_planes, 37, 100, 130)
        for row in (0, 15, 16, 36):
            y_I = kernels.decode_row(path, matrix.planes, matrix.scales, *matrix.arguments, row)
            np.testing.assert_array_equal(y_I, matrix.weight_OI[row].astype(np.float32))


@pytest.mark.parametrize("path", PATHS)
def test_scales_are_summed(path: str) -> None:
    rng = np.random.default_rng(15)
    for shape in SHAPES:
        matrix = stored_matrix(rng, 1, *shape)
        weight_G = rng.random(matrix.scale_OG.shape[1]).astype(np.float32)
        y_O = kernels.sum_scales(path, matrix.planes, matrix.scales, *matrix.arguments, weight_G)
        expected_O = matrix.scale_OG.astype(np.float64) @ weight_G
        assert np.all(np.abs(y_O - expected_O) <= (weight_G.size + 2) * UNIT * expected_O)


@pytest.mark.parametrize("path", PATHS)
def test_quantize_is_the_formula(path: str) -> None:
    rng = np.random.default_rng(4)
    for columns in (1, 8, 32, 63, 64, 65, 200, 576):
        x_TI = rng.standard_normal((4, columns)).astype(np.float32)
        x_TI[1] = 0
        x_TI[2] = np.round(x_TI[2] * 8) / 2  # ties
        code_TGC, scale_TG = quantize_reference(x_TI)
        codes, scales, sums = kernels.quantize(path, x_TI)
        np.testing.assert_array_equal(codes.reshape(code_TGC.shape), code_TGC)
        np.testing.assert_array_equal(scales, scale_TG)
        np.testing.assert_array_equal(sums, code_TGC.sum(axis=-1, dtype=np.int32))


@pytest.mark.parametrize("path", PATHS)
def test_broken_activations_give_nan(path: str) -> None:
    rng = np.random.default_rng(5)
    matrix = stored_matrix(rng, 3, 40, 130, 130)
    x_TI = rng.standard_normal((4, 130)).astype(np.float32)
    x_TI[0, 3], x_TI[1, 129], x_TI[2, 70] = np.nan, np.inf, -np.inf
    y_TO = kernels.planes_int8(path, matrix.planes, matrix.scales, *matrix.arguments, x_TI)
    assert np.isnan(y_TO[:3]).all()
    assert np.isfinite(y_TO[3]).all()


@pytest.mark.parametrize("path", FAST_PATHS)
@pytest.mark.parametrize("num_planes", range(1, 9))
def test_paths_agree_to_the_last_bit(path: str, num_planes: int) -> None:
    rng = np.random.default_rng(6)
    for shape in SHAPES:
        matrix = stored_matrix(rng, num_planes, *shape)
        x_TI = rng.standard_normal((40, shape[1])).astype(np.float32)
        arguments = (matrix.planes, matrix.scales, *matrix.arguments)
        expected_TO = kernels.planes_int8("scalar", *arguments, x_TI)
        for tokens in (1, 2, 3, 5, 11, 12, 13, 40):
            y_TO = kernels.planes_int8(path, *arguments, x_TI[:tokens], threads=1 + tokens % 2)
            np.testing.assert_array_equal(y_TO, expected_TO[:tokens], err_msg=f"{tokens} tokens")


@pytest.mark.parametrize("path", PATHS)
def test_fewer_planes_are_a_prefix(path: str) -> None:
    """The product with some planes never looks at the others."""
    rng = np.random.default_rng(7)
    matrix = stored_matrix(rng, 8, 33, 96, 96)
    x_TI = rng.standard_normal((2, 96)).astype(np.float32)
    for num_planes in range(1, 9):
        kept = matrix.planes[:num_planes]
        prefix = StoredMatrix(
            matrix.code_OI >> (8 - num_planes), matrix.scale_OG, kept, matrix.scales, (33, 96, 96)
        )
        y_TO = kernels.planes_f32(path, kept, matrix.scales, 33, 96, 96, x_TI)
        magnitude_TO = np.abs(x_TI) @ np.abs(prefix.weight_OI).T
        error_TO = np.abs(y_TO - x_TI.astype(np.float64) @ prefix.weight_OI.T)
        assert np.all(error_TO <= 2 * 98 * UNIT * magnitude_TO)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("size", [1, 7, 64, 300])
def test_rms_norm(path: str, size: int) -> None:
    rng = np.random.default_rng(size)
    x, weight = rng.standard_normal((2, size)).astype(np.float32)
    wide = x.astype(np.float64)
    expected = wide / np.sqrt(np.mean(wide**2) + 1e-5) * (weight.astype(np.float64) + 1)
    y = kernels.rms_norm(path, x, weight, 1.0, 1e-5)
    assert np.all(np.abs(y - expected) <= (size + 8) * UNIT * np.abs(expected))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("size", [1, 7, 63, 64, 65, 128, 300])
def test_norm_and_rounding_in_one_are_the_two(path: str, size: int) -> None:
    rng = np.random.default_rng(size)
    x, weight = rng.standard_normal((2, size)).astype(np.float32)
    normed = kernels.rms_norm(path, x, weight, 0.5, 1e-6)
    for fused, apart in zip(
        kernels.norm_quantize(path, x, weight, 0.5, 1e-6),
        kernels.quantize(path, normed[None]),
        strict=True,
    ):
        np.testing.assert_array_equal(fused, apart[0])


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("head_dim", [2, 6, 32, 80, 128])
def test_rotate(path: str, head_dim: int) -> None:
    rng = np.random.default_rng(head_dim)
    head = rng.standard_normal(head_dim).astype(np.float32)
    angle = rng.uniform(0, 100, head_dim // 2)
    cosine, sine = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    pair = head[: head_dim // 2] + 1j * head[head_dim // 2 :]
    turned = pair * (cosine + 1j * sine)
    y = kernels.rotate(path, head, cosine, sine)
    expected = np.concatenate([turned.real, turned.imag])
    assert np.all(np.abs(y - expected) <= 4 * UNIT * np.tile(np.abs(pair), 2) * 2)


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


ACTIVATIONS = [
    lambda x: x / (1 + np.exp(-x)),
    lambda x: 0.5 * x * (1 + np.vectorize(erf)(x / np.sqrt(2))),
    gelu_tanh,
]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("activation", range(3), ids=["silu", "gelu", "gelu_tanh"])
def test_gated(path: str, activation: int) -> None:
    rng = np.random.default_rng(8)
    gate = np.concatenate([np.linspace(-80, 80, 777), [-1e4, 1e4, 0]]).astype(np.float32)
    up = rng.standard_normal(gate.size).astype(np.float32)
    expected = ACTIVATIONS[activation](gate.astype(np.float64)) * up
    y = kernels.gated(path, activation, gate, up)
    # The error function by Abramowitz and Stegun 7.1.26 is within 1.5e-7; the rest is rounding.
    bound = (16 * UNIT + 0.75e-7) * np.abs(gate * up) + 1e-35
    assert np.all(np.abs(y - expected) <= bound)
    assert np.isnan(kernels.gated(path, activation, np.float32([np.nan]), up[:1])).all()


@pytest.mark.parametrize("path", PATHS)
def test_store_rounds_as_numpy(path: str) -> None:
    rng = np.random.default_rng(9)
    exponent = rng.uniform(-26, 17, 4001)
    x = (rng.choice([-1, 1], 4001) * 2**exponent).astype(np.float32)
    x[:6] = [np.inf, -np.inf, 65519.99, 65520.0, 2**-25, 2049.0]
    with np.errstate(over="ignore"):
        expected = x.astype(np.float16).view(np.uint16)
    np.testing.assert_array_equal(kernels.store_half(path, x), expected)


def test_requested_path_must_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLIANT_ISA", "scalar")
    assert kernels.best() == "scalar"
    monkeypatch.setenv("PLIANT_ISA", "abacus")
    with pytest.raises(ValueError, match=f"PLIANT_ISA=abacus .*{', '.join(PATHS)}"):
        kernels.best()
    monkeypatch.setenv("PLIANT_ISA", "")
    assert kernels.best() == PATHS[0]


@pytest.mark.parametrize("threads", [0, -3, 10_000])
def test_thread_counts_are_checked(threads: int) -> None:
    matrix = stored_matrix(np.random.default_rng(0), 1, 32, 32, 32)
    with pytest.raises(ValueError, match="threads"):
        kernels.planes_int8(
            "scalar",
            matrix.planes,
            matrix.scales,
            32,
            32,
            32,
            np.ones((1, 32), np.float32),
            threads,
        )


def test_more_threads_than_tiles() -> None:
    matrix = stored_matrix(np.random.default_rng(1), 4, 40, 64, 64)
    x_TI = np.random.default_rng(2).standard_normal((5, 64)).astype(np.float32)
    arguments = (matrix.planes, matrix.scales, *matrix.arguments, x_TI)
    for path in PATHS:
        one, many = (kernels.planes_int8(path, *arguments, threads=n) for n in (1, 7))
        np.testing.assert_array_equal(one, many)
