"""Ternary digits: the reference against its definition, the kernels against the reference."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from pliant.bits import ternary
from pliant.bits.layout import GROUP_COLUMNS, num_scale_groups
from pliant.errors import CheckpointError, UsageError

SIZES = [(1, 1), (1, 32), (33, 172), (40, 320), (5, 896), (70, 288), (64, 1000)]
all_sizes = pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")


def random_matrix(rows: int, columns: int) -> np.ndarray:
    random = np.random.default_rng([rows, columns])
    return (0.02 * random.standard_t(5, (rows, columns))).astype(np.float32)


@all_sizes
def test_round_trip(size: tuple[int, int]) -> None:
    weight_OI = random_matrix(*size)
    digit_OI, scale_OG = ternary.quantize(weight_OI)
    scale_OI = np.repeat(scale_OG.astype(np.float32), GROUP_COLUMNS, axis=1)[:, : size[1]]
    encoded = ternary.encode(weight_OI)
    assert encoded.digits.nbytes == ternary.ternary_bytes(*size)
    decoded_OI = ternary.decode(encoded)
    np.testing.assert_array_equal(decoded_OI, scale_OI * (digit_OI.astype(np.float32) - 1))
    rows, columns = (size[0] + 1) // 2, (size[1] + 1) // 2
    prefix_OI = ternary.decode(encoded, rows, columns)
    np.testing.assert_array_equal(prefix_OI, decoded_OI[:rows, :columns])


def test_every_number_of_five_digits_comes_off_by_tripling() -> None:
    for digits in itertools.product(range(3), repeat=5):
        row_OI = np.array([digits], np.uint8).repeat(4, axis=1)
        x = int(ternary.pack_digits(row_OI)[0])
        for digit in digits:
            assert 3 * x // 256 == digit
            x = 3 * x % 256


def test_scales_have_the_least_error() -> None:
    weight_OI = random_matrix(3, GROUP_COLUMNS)
    digit_OI, scale_OG = ternary.quantize(weight_OI)
    for row, weight_I in enumerate(weight_OI):
        found = np.square(scale_OG[row, 0] * (digit_OI[row] - 1.0) - weight_I).sum()
        for scale in np.abs(weight_I).max() * np.linspace(0.01, 1.2, 400):
            rounded_I = scale * np.clip(np.rint(weight_I / scale), -1, 1)
            assert found <= np.square(rounded_I - weight_I).sum() * (1 + 1e-5)


def test_size_of_a_matrix_of_whole_spans() -> None:
    encoded = ternary.encode(random_matrix(64, 960))
    assert encoded.effective_bits == 1.6 + 16 / 64
    # Of 2048 columns 128 are a last span of 7 quads: 140 digits for 128 weights.
    assert ternary.ternary_bytes(32, 2048) == 32 * (6 * 64 + 28)


def test_zeros_and_broken_weights() -> None:
    assert not ternary.decode(ternary.encode(np.zeros((3, 70), np.float32))).any()
    with pytest.raises(CheckpointError, match=r"blocks\.0\.q holds NaN"):
        ternary.encode(np.full((1, 3), np.nan, np.float32), "blocks.0.q")
    with pytest.raises(UsageError, match="4 x 70 asked for"):
        ternary.decode(ternary.encode(np.zeros((3, 70), np.float32)), rows=4)


@all_sizes
def test_kernels_multiply_what_is_decoded(size: tuple[int, int]) -> None:
    kernels = pytest.importorskip("pliant._native", reason="the extension is not built").kernels
    encoded = ternary.encode(random_matrix(*size))
    rows, columns = (size[0] + 3) // 2, (3 * size[1] + 3) // 4
    rows, columns = min(rows, size[0]), min(columns, size[1])
    x_TI = np.random.default_rng(1).standard_normal((3, columns)).astype(np.float32)
    codes, scales, _ = kernels.quantize("scalar", x_TI)
    quantized_TGC = codes.reshape(3, -1, GROUP_COLUMNS) * scales[..., None].astype(np.float64)
    quantized_TI = quantized_TGC.reshape(3, -1)[:, :columns]
    weight_OI = ternary.decode(encoded, rows, columns).astype(np.float64)
    magnitude_TO = np.abs(quantized_TI) @ np.abs(weight_OI).T
    # One rounding of the product of scales and one of the sum in each group.
    bound_TO = 2 * (num_scale_groups(columns) + 2) * 2.0**-24 * magnitude_TO
    stored = (encoded.digits, encoded.scales, rows, columns, size[1])
    first_TO = kernels.ternary_int8("scalar", *stored, x_TI)
    assert np.all(np.abs(first_TO - quantized_TI @ weight_OI.T) <= bound_TO)
    for path in kernels.paths():
        for tokens in (1, 3):
            y_TO = kernels.ternary_int8(path, *stored, x_TI[:tokens], threads=2)
            np.testing.assert_array_equal(y_TO, first_TO[:tokens])
    short = (encoded.digits[:-1], encoded.scales, size[0], *stored[3:])
    with pytest.raises(ValueError, match="digits are too few"):
        kernels.ternary_int8("scalar", *short, x_TI)
