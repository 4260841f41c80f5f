"""Planes of signs: every path against the definition, that against the codec, and both against the
product that only shifts and adds. Shape suffixes: O rows, I columns, T tokens, G groups.
"""

from __future__ import annotations

import numpy as np
import pytest

from pliant.bits import EncodedMatrix, ShiftAddCodec

native = pytest.importorskip("pliant._native", reason="the extension is not built")
kernels = native.kernels

UNIT = 2.0**-24  # half the spacing of fp32 at 1: the rounding error of one operation
PATHS = kernels.paths()
FAST_PATHS = [path for path in PATHS if path != "scalar"]
# rows, columns, stored columns
SHAPES = [(1, 8, 8), (5, 40, 72), (33, 97, 260), (48, 128, 128), (129, 288, 288)]


def stored(rows: int, columns: int, planes: int) -> EncodedMatrix:
    """A matrix as the codec makes it."""
    rng = np.random.default_rng([rows, columns, planes])
    weight_OI = (0.02 * rng.standard_t(4, (rows, columns))).astype(np.float32)
    return ShiftAddCodec(planes).encode(weight_OI)


def arguments(encoded: EncodedMatrix, columns: int) -> tuple:
    return encoded.planes, encoded.scales, encoded.rows, columns, encoded.columns


def activations(tokens: int, columns: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng([seed, columns])
    x_TI = rng.normal(size=(tokens, columns)).astype(np.float32)
    x_TI[0, : columns // 2] = 0
    return x_TI


def powers(tokens: int, columns: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes, exponents, and the activations they are, which every path rounds to just them."""
    rng = np.random.default_rng(columns)
    groups = -(-columns // 64)
    code_TI = np.zeros((tokens, groups * 64), np.int8)
    code_TI[:, :columns] = rng.integers(-127, 128, (tokens, columns))
    code_TI[:, :columns:64] = 127
    exponent_TG = rng.integers(-9, 4, (tokens, groups)).astype(np.int32)
    x_TI = code_TI * np.exp2(np.repeat(exponent_TG, 64, axis=1))
    x_TI = x_TI[:, :columns].astype(np.float32)
    return code_TI, exponent_TG, x_TI


@pytest.mark.parametrize("planes", [1, 2, 3, 4])
def test_rows_and_products_are_those_of_the_codec(planes: int) -> None:
    for rows, columns, stored_columns in SHAPES:
        encoded = stored(rows, stored_columns, 4)
        prefix = EncodedMatrix(rows, stored_columns, encoded.planes[:planes], encoded.scales)
        weight_OI = ShiftAddCodec().decode(encoded, planes, columns=columns)
        given = arguments(prefix, columns)
        for row in (0, rows - 1):
            np.testing.assert_array_equal(kernels.signs_row(*given, row), weight_OI[row])
        x_TI = activations(3, columns)
        exact_TO = x_TI.astype(np.float64) @ weight_OI.T.astype(np.float64)
        bound_TO = 2 * (columns + 2) * UNIT * (np.abs(x_TI) @ np.abs(weight_OI.T))
        y_TO = kernels.signs_f32("scalar", *given, x_TI)
        assert (np.abs(y_TO - exact_TO) <= bound_TO).all()
        code_TI, scale_TG, _ = kernels.quantize("scalar", x_TI)
        rounded_TI = code_TI * np.repeat(scale_TG.astype(np.float64), 64, axis=1)
        exact_TO = rounded_TI[:, :columns] @ weight_OI.T.astype(np.float64)
        y_TO = kernels.signs_int8("scalar", *given, x_TI)
        # Sums over planes are rounded, and as large as all scales together.
        size_OI = sum(np.abs(ShiftAddCodec().decode(encoded, p, columns=columns)
                             - (ShiftAddCodec().decode(encoded, p - 1, columns=columns)
                                if p > 1 else 0)) for p in range(1, planes + 1))  # fmt: skip
        bound_TO = 2 * (5 * -(-columns // 64) + 2) * UNIT * (
            np.abs(rounded_TI[:, :columns]) @ size_OI.T
        )  # fmt: skip
        assert (np.abs(y_TO - exact_TO) <= bound_TO).all()


@pytest.mark.parametrize("path", FAST_PATHS)
def test_paths_agree_to_the_last_bit(path: str) -> None:
    for rows, columns, stored_columns in SHAPES:
        for planes in (1, 2, 3, 4):
            given = arguments(stored(rows, stored_columns, planes), columns)
            x_TI = activations(7, columns)
            expected_TO = kernels.signs_int8("scalar", *given, x_TI)
            exact_TO = kernels.signs_f32("scalar", *given, x_TI[:3])
            for tokens in (1, 2, 3, 7):
                y_TO = kernels.signs_int8(path, *given, x_TI[:tokens], threads=1 + tokens % 2)
                np.testing.assert_array_equal(y_TO, expected_TO[:tokens])
            np.testing.assert_array_equal(kernels.signs_f32(path, *given, x_TI[:3]), exact_TO)


@pytest.mark.parametrize("path", PATHS)
def test_shifts_and_additions_give_the_same_product(path: str) -> None:
    for rows, columns, stored_columns in SHAPES:
        encoded = stored(rows, stored_columns, 3)
        given = arguments(encoded, columns)
        code_TI, exponent_TG, x_TI = powers(3, columns)
        shifted_TO = kernels.shift_add(*given, code_TI, exponent_TG)
        weight_OI = ShiftAddCodec(3).decode(encoded, 3, columns=columns)
        exact_TO = x_TI.astype(np.float64) @ weight_OI.T.astype(np.float64)
        # Exact but for one rounding to fp32.
        np.testing.assert_array_equal(shifted_TO, exact_TO.astype(np.float32))
        y_TO = kernels.signs_int8(path, *given, x_TI)
        bound_TO = 2 * (4 * -(-columns // 64) + 2) * UNIT * (
            np.abs(x_TI) @ (3 * np.abs(weight_OI).max() * np.ones_like(weight_OI.T))
        )  # fmt: skip
        assert (np.abs(y_TO - shifted_TO) <= bound_TO).all()


@pytest.mark.parametrize("path", PATHS)
def test_both_products_are_equal_where_fp32_has_room(path: str) -> None:
    """Scales of few digits near each other: no sum is rounded, zeros and signs included."""
    rng = np.random.default_rng(3)
    choices = np.array([0.0, 2.0**-3, 0.375, 0.4375, 0.625, 0.75], np.float16)
    encoded = stored(40, 128, 4)
    scales = rng.choice(choices, encoded.scales.size).view(np.uint16)
    given = arguments(EncodedMatrix(40, 128, encoded.planes, scales), 128)
    code_TI, exponent_TG, _ = powers(4, 128)
    exponent_TG[:] = -2
    code_TI[1], code_TI[2, :64] = 0, 0
    x_TI = (code_TI * 0.25).astype(np.float32)
    shifted_TO = kernels.shift_add(*given, code_TI, exponent_TG)
    np.testing.assert_array_equal(kernels.signs_int8(path, *given, x_TI), shifted_TO)
    assert not shifted_TO[1].any()
    minus_TO = kernels.shift_add(*given, -code_TI, exponent_TG)
    np.testing.assert_array_equal(minus_TO, -shifted_TO)


def test_the_smallest_and_largest_scales_are_shifted_right() -> None:
    """Subnormal numbers and the largest of fp16; the published kernel wraps at both ends."""
    encoded = stored(4, 64, 1)
    code_TI, exponent_TG = np.zeros((1, 64), np.int8), np.zeros((1, 1), np.int32)
    code_TI[0, 5] = -77
    sign_O = np.where(encoded.bits(0, 4, 64)[:, 5], -77.0, 77.0)
    for value in (2.0**-24, 3 * 2.0**-24, 2.0**-14, 1.75, 65504.0):
        scales = np.full(encoded.scales.size, value, np.float16).view(np.uint16)
        given = arguments(EncodedMatrix(4, 64, encoded.planes, scales), 64)
        y_TO = kernels.shift_add(*given, code_TI, exponent_TG)
        assert y_TO[0].tolist() == (sign_O * value).astype(np.float32).tolist()


def test_arrays_that_do_not_fit_are_refused() -> None:
    encoded = stored(40, 128, 4)
    planes, scales, *shape = arguments(encoded, 128)
    x_TI = activations(1, 128)
    with pytest.raises(ValueError, match="1 to 4 planes"):
        kernels.signs_int8("scalar", [*planes, planes[0]], scales, *shape, x_TI)
    with pytest.raises(ValueError, match="the scales are too few"):
        kernels.signs_f32("scalar", planes, scales[:-1], *shape, x_TI)
    with pytest.raises(ValueError, match="row must be below rows"):
        kernels.signs_row(planes, scales, *shape, 40)
    code_TI, exponent_TG, _ = powers(1, 128)
    with pytest.raises(ValueError, match="exponents"):
        kernels.shift_add(planes, scales, *shape, code_TI, exponent_TG + 5000)
    broken = scales.copy()
    broken[7] = 0x7C00
    with pytest.raises(ValueError, match="finite"):
        kernels.shift_add(planes, broken, *shape, code_TI, exponent_TG)
    with pytest.raises(ValueError, match="planes of signs"):
        native.PlaneMatrix([*planes, planes[0]], scales, 40, 128, 40, 128, "signs")
    with pytest.raises(ValueError, match="uniform and signs"):
        native.PlaneMatrix(planes, scales, 40, 128, 40, 128, "trits")
