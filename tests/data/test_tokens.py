"""Token streams and windows: order, width of integers, determinism, overlap."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pliant.data import bytes_per_token, calibration_windows, encode_corpus, token_windows
from pliant.errors import DataError


def letters(text: str) -> list[int]:
    return [ord(character) for character in text]


def test_a_separator_stands_before_each_document() -> None:
    stream = encode_corpus(["ab", "c"], letters, separator_id=0)
    assert stream.tolist() == [0, 97, 98, 0, 99]
    assert encode_corpus(["ab", "c"], letters, None).tolist() == [97, 98, 99]


def test_ids_take_the_narrowest_of_two_types() -> None:
    assert encode_corpus(["ab"], letters, 65535).dtype == np.uint16
    wide = encode_corpus(["ab"], letters, 65536)
    assert wide.dtype == np.uint32
    assert wide.tolist() == [65536, 97, 98]


def test_text_without_tokens_is_refused() -> None:
    with pytest.raises(DataError, match="no tokens"):
        encode_corpus(["", ""], letters, separator_id=0)
    with pytest.raises(DataError, match="empty text"):
        bytes_per_token([""], letters)


def test_bytes_are_counted_as_utf8() -> None:
    assert bytes_per_token(["aä", "\U0001f642"], letters) == pytest.approx(7 / 3)


@pytest.mark.parametrize(("size", "length", "count"), [(1000, 10, 100), (1009, 10, 7), (5, 5, 1)])
def test_windows_are_consecutive_and_disjoint(size: int, length: int, count: int) -> None:
    windows = token_windows(np.arange(size, dtype=np.uint16), length, count, seed=3)
    assert windows.shape == (count, length)
    assert windows.dtype == np.int64
    assert (np.diff(windows, axis=1) == 1).all()
    assert np.unique(windows).size == windows.size


def test_windows_depend_on_the_seed_alone() -> None:
    stream = np.arange(5000)
    first = token_windows(stream, 32, 20, seed=1)
    np.testing.assert_array_equal(first, token_windows(stream, 32, 20, seed=1))
    assert (first != token_windows(stream, 32, 20, seed=2)).any()


def test_more_windows_than_cells_overlap() -> None:
    windows = token_windows(np.arange(25), 10, 6, seed=0)
    assert windows.shape == (6, 10)
    assert (np.diff(windows, axis=1) == 1).all()
    assert not set(windows[0]) & set(windows[1])


@pytest.mark.parametrize(
    ("length", "count", "message"),
    [(101, 1, "only 100 tokens"), (0, 1, "must be >= 1"), (10, 0, "must be >= 1")],
)
def test_impossible_windows_are_refused(length: int, count: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        token_windows(np.arange(100), length, count, seed=0)


def test_calibration_comes_from_a_file_or_the_package(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("abcdefghij" * 10)
    given = calibration_windows(path, letters, 0, length=16, count=4, seed=0)
    assert given.shape == (4, 16)
    packaged = calibration_windows(None, letters, 0, length=64, count=128, seed=0)
    assert packaged.shape == (128, 64)
    with pytest.raises(DataError, match="101 tokens"):
        calibration_windows(path, letters, 0, length=512, count=1, seed=0)
