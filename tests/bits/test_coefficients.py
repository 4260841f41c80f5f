"""Planes with a coefficient each: the reference against the formula, the kernels against it.

Shapes: P planes, O rows, I columns, G groups of 64 columns, T tokens.
"""

from __future__ import annotations

import numpy as np
import pytest

from pliant.bits import coefficients
from pliant.bits.coefficients import CoefficientPlanes
from pliant.bits.layout import GROUP_COLUMNS, num_scale_groups
from pliant.bits.uniform import UniformCodec
from pliant.errors import UsageError

SIZES = [(1, 1), (1, 32), (33, 72), (48, 97), (100, 288)]
UNIT = 2.0**-24


def spread(number_OG: np.ndarray, columns: int) -> np.ndarray:
    """Numbers of groups as numbers of columns."""
    return np.repeat(number_OG, GROUP_COLUMNS, axis=-1)[..., :columns]


def random_parts(planes: int, rows: int, columns: int) -> tuple[np.ndarray, ...]:
    random = np.random.default_rng([planes, rows, columns])
    shape = (rows, num_scale_groups(columns))
    return (
        random.random((planes, rows, columns)) < 0.5,
        random.normal(0, 0.02, (planes, *shape)).astype(np.float16),
        random.normal(0, 0.02, shape).astype(np.float16),
    )


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("planes", [1, 3, 8])
def test_round_trip_is_the_formula(planes: int, size: tuple[int, int]) -> None:
    bit_POI, coefficient_POG, offset_OG = random_parts(planes, *size)
    encoded = coefficients.encode(bit_POI, coefficient_POG, offset_OG)
    expected_OI = spread(offset_OG.astype(np.float64), size[1])
    expected_OI += (bit_POI * spread(coefficient_POG.astype(np.float64), size[1])).sum(axis=0)
    bound = planes * UNIT * (planes + 1) * 0.2
    decoded_OI = coefficients.decode(encoded)
    assert np.abs(decoded_OI - expected_OI).max() <= bound
    rows, columns = (size[0] + 1) // 2, (size[1] + 1) // 2
    prefix_OI = coefficients.decode(encoded, rows, columns)
    np.testing.assert_array_equal(prefix_OI, decoded_OI[:rows, :columns])


def test_sums_of_signed_powers_of_two_are_exact() -> None:
    random = np.random.default_rng(0)
    positive_POI = random.random((3, 40, 130)) < 0.5
    magnitude_POG = np.exp2(random.integers(-9, 0, (3, 40, 3))).astype(np.float32)
    sign_POI = np.where(positive_POI, 1.0, -1.0)
    expected_OI = (sign_POI * spread(magnitude_POG, 130)).sum(axis=0)
    encoded = coefficients.from_signs(positive_POI, magnitude_POG)
    np.testing.assert_array_equal(coefficients.decode(encoded), expected_OI)
    # Planes and their numbers, one run more of numbers, padding to 64 rows and 160 and 192 columns.
    stored_bits = 3 * 64 * 160 + 4 * 64 * 3 * 16
    assert encoded.effective_bits == stored_bits / (40 * 130)


@pytest.mark.parametrize("planes", [1, 2, 4, 8])
def test_uniform_codes_are_a_special_case(planes: int) -> None:
    """`coefficient ~ 2^-p`: the same bits stand for the same values, but for fp16 rounding."""
    weight_OI = np.random.default_rng(planes).normal(0, 0.02, (40, 200)).astype(np.float32)
    uniform = UniformCodec(8).encode(weight_OI)
    scale = uniform.scales.view(np.float16).astype(np.float32)
    step = 2.0 ** (8 - planes)
    encoded = CoefficientPlanes(
        40,
        200,
        uniform.planes[:planes],
        [
            (scale * 2.0 ** (7 - plane)).astype(np.float16).view(np.uint16)
            for plane in range(planes)
        ],
        (scale * (step / 2 - 128)).astype(np.float16).view(np.uint16),
    )
    difference_OI = coefficients.decode(encoded) - UniformCodec(8).decode(uniform, planes)
    assert np.abs(difference_OI).max() <= 2.0**-11 * 128 * scale.max() + 2.0**-24


def test_contradicting_parts_are_refused() -> None:
    bit_POI, coefficient_POG, offset_OG = random_parts(2, 5, 70)
    with pytest.raises(UsageError, match=r"\(2, 5, 2\)"):
        coefficients.encode(bit_POI, coefficient_POG[:1], offset_OG)
    with pytest.raises(UsageError, match="0 planes"):
        coefficients.encode(bit_POI[:0], coefficient_POG[:0], offset_OG)
    with pytest.raises(UsageError, match="6 x 70 asked for"):
        coefficients.decode(coefficients.encode(bit_POI, coefficient_POG, offset_OG), rows=6)


class TestKernels:
    """The engine's products against the reference, on every path."""

    @pytest.mark.parametrize("size", SIZES, ids=str)
    @pytest.mark.parametrize("planes", [1, 3, 8])
    def test_products(self, planes: int, size: tuple[int, int]) -> None:
        kernels = pytest.importorskip("pliant._native", reason="the extension is not built").kernels
        encoded = coefficients.encode(*random_parts(planes, *size))
        rows, columns = (size[0] + 2) // 2, (size[1] + 2) // 2
        rows, columns = min(rows, size[0]), min(columns, size[1])
        weight_OI = coefficients.decode(encoded, rows, columns).astype(np.float64)
        x_TI = np.random.default_rng(1).standard_normal((6, columns)).astype(np.float32)
        stored = (encoded.planes, encoded.coefficients, encoded.offsets, rows, columns, size[1])
        # Against the sum of the magnitudes of all terms, which may cancel within a weight.
        term = (planes + 1) * 0.12
        exact_TO = x_TI @ weight_OI.T
        bound_T = 2 * (columns + planes + 2) * UNIT * term * np.abs(x_TI).sum(axis=1)
        codes, scales, _ = kernels.quantize("scalar", x_TI)
        quantized_TGC = codes.reshape(6, -1, GROUP_COLUMNS) * scales[..., None].astype(np.float64)
        quantized_TI = quantized_TGC.reshape(6, -1)[:, :columns]
        first_TO = kernels.coefficients_int8("scalar", *stored, x_TI)
        assert np.all(np.abs(first_TO - quantized_TI @ weight_OI.T) <= bound_T[:, None])
        for path in kernels.paths():
            y_TO = kernels.coefficients_f32(path, *stored, x_TI)
            assert np.all(np.abs(y_TO - exact_TO) <= bound_T[:, None])
            for tokens in (1, 2, 3, 6):
                y_TO = kernels.coefficients_int8(path, *stored, x_TI[:tokens], threads=2)
                np.testing.assert_array_equal(y_TO, first_TO[:tokens])
            row_I = kernels.coefficients_row(path, *stored, rows - 1)
            np.testing.assert_array_equal(row_I, weight_OI[-1].astype(np.float32))

    def test_sizes_are_checked(self) -> None:
        kernels = pytest.importorskip("pliant._native", reason="the extension is not built").kernels
        encoded = coefficients.encode(*random_parts(2, 33, 70))
        x_TI = np.ones((1, 70), np.float32)
        good = [encoded.planes, encoded.coefficients, encoded.offsets, 33, 70, 70]
        for place, bad, what in (
            (0, [encoded.planes[0], encoded.planes[1][:-1]], "plane is too short"),
            (1, encoded.coefficients[:1], "as many coefficients"),
            (1, [encoded.offsets, encoded.offsets[:-1]], "coefficients are too few"),
            (2, encoded.offsets[:-1], "offsets are too few"),
            (4, 71, "columns"),
        ):
            arguments = [*good[:place], bad, *good[place + 1 :]]
            with pytest.raises(ValueError, match=what):
                kernels.coefficients_int8("scalar", *arguments, x_TI)
