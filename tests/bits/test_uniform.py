"""Properties of the uniform codec beyond the contract: exact codes, exact bounds."""

from __future__ import annotations

import numpy as np
import pytest

from pliant.bits import UniformCodec
from pliant.bits.uniform import pack_planes, quantize

FULL = UniformCodec()


def random_matrix(rows, columns, seed=0):
    random = np.random.default_rng([seed, rows, columns])
    return (0.02 * random.standard_t(4, (rows, columns))).astype(np.float32)


def stored_scales(encoded):
    """Scales as `[rows, groups]`, by reading the layout in plain loops."""
    groups = -(-encoded.columns // 64)
    tiled = encoded.scales.view(np.float16).reshape(-1, groups, 32)
    rows = [[tiled[row // 32, group, row % 32] for group in range(groups)]
            for row in range(encoded.rows)]  # fmt: skip
    return np.array(rows)


def stored_codes(encoded, planes):
    """Codes as `[rows, columns]`, by reading each bit in plain loops as the layout states."""
    chunks = -(-encoded.columns // 32)
    code_OI = np.zeros((encoded.rows, encoded.columns), int)
    for row, column in np.ndindex(code_OI.shape):
        start = ((row // 32) * chunks + column // 32) * 128 + (row % 32) // 16 * 64
        byte, bit = start + 4 * (row % 16) + column % 4, column % 32 // 4
        for plane in encoded.planes[:planes]:
            code_OI[row, column] = 2 * code_OI[row, column] + (plane[byte] >> bit & 1)
    return code_OI


@pytest.mark.parametrize("size", [(1, 64), (33, 172), (5, 896), (40, 8), (64, 288)])
@pytest.mark.parametrize("magnitude", [1e-4, 1.0, 3e5])
def test_error_is_at_most_half_a_step_at_every_plane_count(size, magnitude):
    weight_OI = random_matrix(*size) * np.float32(magnitude)
    encoded = FULL.encode(weight_OI)
    scale_OI = np.repeat(stored_scales(encoded).astype(np.float64), 64, axis=1)[:, : size[1]]
    for planes in range(1, 9):
        error_OI = np.abs(FULL.decode(encoded, planes).astype(np.float64) - weight_OI)
        half_step_OI = scale_OI * 2.0 ** (8 - planes) / 2
        # Beside half a step: rounding of w / s (|w / s| <= 128) and of the product, each 2^-24.
        tolerance_OI = half_step_OI + 4 * 128 * scale_OI * 2.0**-24
        assert (error_OI <= tolerance_OI).all(), (error_OI / half_step_OI).max()


def test_decode_equals_the_stored_bits_read_one_by_one():
    encoded = FULL.encode(random_matrix(35, 70))
    scale_OI = np.repeat(stored_scales(encoded).astype(np.float32), 64, axis=1)[:, :70]
    for planes in (1, 2, 5, 8):
        step = 2 ** (8 - planes)
        codes = stored_codes(encoded, planes).astype(np.float32)
        expected = scale_OI * (step * (codes + np.float32(0.5)) - 128)
        np.testing.assert_array_equal(FULL.decode(encoded, planes), expected)


def test_codes_of_a_prefix_are_the_truncated_codes():
    encoded = FULL.encode(random_matrix(35, 70))
    all_planes = stored_codes(encoded, 8)
    for planes in range(1, 8):
        np.testing.assert_array_equal(stored_codes(encoded, planes), all_planes >> (8 - planes))


def test_decoded_weights_quantize_to_the_same_codes():
    encoded = FULL.encode(random_matrix(33, 192))
    decoded = FULL.decode(encoded, 8).reshape(33, 3, 64)
    codes = quantize(decoded, stored_scales(encoded)).reshape(33, 192)
    np.testing.assert_array_equal(codes, stored_codes(encoded, 8))


def test_known_values():
    weight_OI = np.array([[-1.28, -0.64, -0.005, 0.005, 0.64, 1.28, 0.0, 1.275]], np.float32)
    scale_OG = np.array([[0.01]], np.float16)
    padded = np.zeros((1, 1, 64), np.float32)
    padded[0, 0, :8] = weight_OI
    assert quantize(padded, scale_OG)[0, 0, :8].tolist() == [0, 64, 127, 128, 191, 255, 128, 255]


def test_packing_places_one_bit_where_the_layout_says():
    for row, column, plane in [(0, 0, 0), (17, 5, 3), (31, 31, 7), (40, 70, 2)]:
        code_OI = np.zeros((64, 96), np.uint8)
        code_OI[row, column] = 128 >> plane
        planes = pack_planes(code_OI, 8)
        start = ((row // 32) * 3 + column // 32) * 128 + (row % 32) // 16 * 64
        expected = np.zeros(64 * 96 // 8, np.uint8)
        expected[start + 4 * (row % 16) + column % 4] = 1 << (column % 32 // 4)
        np.testing.assert_array_equal(planes[plane], expected)
        assert not any(other.any() for index, other in enumerate(planes) if index != plane)


def test_scale_search_beats_the_plain_scale_on_its_own_objective():
    weight_OI = random_matrix(64, 640, seed=1)
    for planes in (2, 4, 8):
        codec = UniformCodec(planes)
        encoded = codec.encode(weight_OI)
        largest_OG = np.abs(weight_OI.reshape(64, 10, 64)).max(axis=2)
        plain_OG = np.repeat(largest_OG / 128, 64, axis=1)
        searched = plain = 0.0
        for count in range(2, planes + 1):
            step = 2.0 ** (8 - count)
            position = np.clip(np.floor(weight_OI / plain_OG + 128), 0, 255) // step
            rounded = plain_OG * (step * (position + 0.5) - 128)
            reference = np.square(rounded - weight_OI).sum()
            found = np.square(codec.decode(encoded, count) - weight_OI).sum()
            searched, plain = searched + found / reference, plain + 1
        print(f"{planes} planes: relative error {searched / plain:.4f}")
        assert searched < plain


@pytest.mark.parametrize("planes", [1, 2, 3])
def test_clipping_serves_artifacts_of_few_planes(planes):
    weight_OI = random_matrix(64, 640, seed=2)
    few, all_planes = (UniformCodec(stored).encode(weight_OI) for stored in (planes, 8))
    errors = [
        np.square(FULL.decode(encoded, planes) - weight_OI).sum() for encoded in (few, all_planes)
    ]
    print(f"{planes} planes: {errors[0] / errors[1]:.3f} of the error of an artifact of 8")
    assert errors[0] < 0.95 * errors[1]


def test_the_smallest_and_largest_scales():
    tiny = FULL.encode(np.full((1, 64), 1e-9, np.float32))
    assert stored_scales(tiny)[0, 0] == 2.0**-24
    assert abs(FULL.decode(tiny, 8) - 1e-9).max() <= 2.0**-25
    huge = FULL.encode(np.full((1, 64), 1e9, np.float32))
    assert stored_scales(huge)[0, 0] == 65504
    np.testing.assert_allclose(FULL.decode(huge, 8), 65504 * 127.5)
