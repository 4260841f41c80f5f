"""What every codec promises; a new codec joins by being registered in `pliant.bits.codecs`."""

from __future__ import annotations

import numpy as np
import pytest

from pliant.bits import (
    CHUNK_BYTES,
    MAX_PLANES,
    PADDING_FAULT,
    EncodedMatrix,
    codecs,
    plane_bytes,
    scale_bytes,
)
from pliant.errors import CheckpointError, UsageError

SIZES = [(1, 64), (1, 1), (33, 172), (64, 288), (5, 896), (100, 8), (31, 33), (96, 65), (2, 4097)]

codec_contract = pytest.mark.parametrize("codec", codecs.values(), ids=codecs.keys())
all_sizes = pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")


def random_matrix(rows, columns, seed=0):
    random = np.random.default_rng([seed, rows, columns])
    row_sizes = np.exp(random.normal(size=(rows, 1)))
    return (0.02 * row_sizes * random.standard_t(5, (rows, columns))).astype(np.float32)


@codec_contract
@all_sizes
def test_sizes_on_disk_are_those_of_the_layout(codec, size):
    encoded = codec.encode(random_matrix(*size))
    assert (encoded.rows, encoded.columns) == size
    assert len(encoded.planes) == codec.planes <= MAX_PLANES
    assert all(plane.nbytes == plane_bytes(*size) for plane in encoded.planes)
    assert encoded.scales.nbytes == scale_bytes(*size)
    stored = codec.planes * plane_bytes(*size) + scale_bytes(*size)
    assert encoded.num_bytes == stored
    assert encoded.effective_bits == 8 * stored / (size[0] * size[1])


@codec_contract
@pytest.mark.parametrize("size", [size for size in SIZES if size != (1, 1)])
def test_more_planes_never_hurt(codec, size):
    weight_OI = random_matrix(*size)
    encoded = codec.encode(weight_OI)
    errors = [
        float(np.square(codec.decode(encoded, planes) - weight_OI, dtype=np.float64).sum())
        for planes in range(1, codec.planes + 1)
    ]
    if codec.nested:
        assert errors == sorted(errors, reverse=True)
    assert errors[-1] == min(errors)
    # 8 planes of well-spread values are nearly lossless, whatever the codec; each halves the step.
    assert errors[-1] < 1e-3 * 4 ** (8 - codec.planes) * float(np.square(weight_OI).sum())


@codec_contract
@pytest.mark.parametrize("planes", range(1, MAX_PLANES))
def test_a_prefix_reads_no_later_plane(codec, planes):
    planes = min(planes, codec.planes - 1)
    encoded = codec.encode(random_matrix(33, 172))
    noise = np.random.default_rng(planes)
    damaged = [noise.integers(0, 256, p.size).astype(np.uint8) for p in encoded.planes[planes:]]
    other = EncodedMatrix(33, 172, encoded.planes[:planes] + damaged, encoded.scales)
    short = EncodedMatrix(33, 172, encoded.planes[:planes], encoded.scales)
    expected = codec.decode(encoded, planes)
    np.testing.assert_array_equal(codec.decode(other, planes), expected)
    np.testing.assert_array_equal(codec.decode(short, planes), expected)


@codec_contract
@pytest.mark.parametrize("prefix", [(1, 1), (32, 64), (33, 65), (40, 172), (7, 100)])
def test_a_prefix_of_rows_and_columns_is_a_slice(codec, prefix):
    encoded = codec.encode(random_matrix(40, 172))
    whole = codec.decode(encoded, 3)
    part = codec.decode(encoded, 3, rows=prefix[0], columns=prefix[1])
    np.testing.assert_array_equal(part, whole[: prefix[0], : prefix[1]])


@codec_contract
def test_rows_are_coded_independently_of_the_matrix_around_them(codec):
    weight_OI = random_matrix(70, 130)
    whole, part = codec.encode(weight_OI), codec.encode(weight_OI[:32])
    for plane, plane_of_part in zip(whole.planes, part.planes, strict=True):
        np.testing.assert_array_equal(plane[: plane_of_part.size], plane_of_part)
    np.testing.assert_array_equal(whole.scales[: part.scales.size], part.scales)


@codec_contract
@pytest.mark.parametrize("planes", [1, 2, 3, 5])
def test_fewer_planes_can_be_stored(codec, planes):
    if planes > codec.planes:
        with pytest.raises(UsageError, match=f"{planes} planes asked for; .* 1 to {codec.planes}"):
            codec.with_planes(planes)
        return
    weight_OI = random_matrix(33, 172)
    encoded = codec.with_planes(planes).encode(weight_OI)
    assert len(encoded.planes) == planes
    assert np.isfinite(codec.decode(encoded, planes)).all()
    with pytest.raises(UsageError, match=f"{planes + 1} planes asked for; {planes} are stored"):
        codec.decode(encoded, planes + 1)


@codec_contract
@all_sizes
def test_padding_is_zero(codec, size):
    rows, columns = size
    encoded = codec.encode(random_matrix(rows, columns))
    padded_rows, padded_columns = -(-rows // 32) * 32, -(-columns // 32) * 32
    # Read with the padding counted as part of the matrix: bits and scales there must be 0.
    for plane in encoded.planes:
        chunks = plane.reshape(padded_rows // 32, padded_columns // 32, CHUNK_BYTES)
        bits = np.unpackbits(chunks.reshape(-1, 2, 16, 4, 1), axis=-1, bitorder="little")
        bits = bits.reshape(padded_rows // 32, -1, 2, 16, 4, 8)
        code = bits.transpose(0, 2, 3, 1, 5, 4).reshape(padded_rows, padded_columns)
        assert not code[rows:].any()
        assert not code[:, columns:].any()
    # Where the scales of rows beyond the matrix lie is the codec's business; it finds them.
    assert codec.fault(encoded) is None
    if rows % 32 == 1:
        full = np.where(encoded.scales == 0, np.uint16(0x3C00), encoded.scales)
        assert codec.fault(EncodedMatrix(rows, columns, encoded.planes, full)) == PADDING_FAULT


@codec_contract
def test_scales_are_finite_and_not_negative(codec):
    for magnitude in (1e-38, 1e-9, 1e-3, 1.0, 1e6, 3e38):
        with np.errstate(over="ignore"):
            encoded = codec.encode(np.float32(magnitude) * np.sign(random_matrix(9, 70)))
        scales = encoded.scales.view(np.float16)
        assert np.isfinite(scales).all()
        assert (scales >= 0).all()
        assert codec.fault(encoded) is None
        assert not np.signbit(scales).any()
        assert np.isfinite(codec.decode(encoded, codec.planes)).all()


@codec_contract
def test_zero_stays_zero(codec):
    encoded = codec.encode(np.zeros((33, 172), np.float32))
    assert not codec.decode(encoded, codec.planes).any()
    assert not codec.decode(encoded, 1).any()


@codec_contract
@pytest.mark.parametrize("value", [1.0, -0.37, 6e4, 2e-5])
def test_constant_matrix(codec, value):
    decoded = codec.decode(codec.encode(np.full((3, 100), value, np.float32)), codec.planes)
    np.testing.assert_allclose(decoded, value, rtol=0.006)


@codec_contract
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite_is_refused_by_name(codec, bad):
    weight_OI = random_matrix(70, 66)
    weight_OI[69, 65] = bad
    with pytest.raises(CheckpointError, match=r"blocks\.3\.up holds NaN or infinite"):
        codec.encode(weight_OI, "blocks.3.up")


@codec_contract
def test_reading_more_than_is_stored_is_refused(codec):
    encoded = codec.encode(random_matrix(8, 70))
    with pytest.raises(UsageError, match="0 planes asked for"):
        codec.decode(encoded, 0)
    with pytest.raises(UsageError, match="9 x 70 asked for; the matrix is 8 x 70"):
        codec.decode(encoded, codec.planes, rows=9)
    with pytest.raises(UsageError, match="8 x 71 asked for"):
        codec.decode(encoded, codec.planes, columns=71)
    with pytest.raises(UsageError, match="9 planes"):
        codec.with_planes(9)


@codec_contract
def test_encoding_is_deterministic_and_ignores_memory_order(codec):
    weight_OI = random_matrix(70, 130)
    first, second = codec.encode(weight_OI), codec.encode(np.asfortranarray(weight_OI))
    for plane, again in zip(first.planes, second.planes, strict=True):
        np.testing.assert_array_equal(plane, again)
    np.testing.assert_array_equal(first.scales, second.scales)


def test_encoded_matrix_checks_its_sizes():
    encoded = next(iter(codecs.values())).encode(random_matrix(3, 70))
    with pytest.raises(ValueError, match="A plane is"):
        EncodedMatrix(3, 200, encoded.planes, encoded.scales)
    with pytest.raises(ValueError, match="Scales are"):
        EncodedMatrix(3, 70, encoded.planes, encoded.scales[:-1])


@codec_contract
@pytest.mark.parametrize("bits", [0x7E00, 0x7C00, 0xBC00, 0x8000], ids=["nan", "inf", "-1", "-0"])
def test_scales_that_no_codec_may_store_are_found(codec, bits):
    encoded = codec.encode(random_matrix(33, 172))
    scales = encoded.scales.copy()
    scales[3] = bits
    fault = codec.fault(EncodedMatrix(33, 172, encoded.planes, scales))
    assert fault == "a NaN, infinite or negative scale"
