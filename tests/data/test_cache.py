"""The token cache: encoded once, and again when anything that matters has changed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pliant.data import cached_tokens, stream_fingerprint
from pliant.errors import DataError


class CountingEncoder:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, text: str) -> list[int]:
        self.calls += 1
        return [ord(character) for character in text]


def test_the_second_reading_maps_the_first(tmp_path: Path) -> None:
    text, folder, encoder = tmp_path / "story.txt", tmp_path / "cache", CountingEncoder()
    text.write_text("abc\n<|endoftext|>\nde")
    first = cached_tokens(text, folder, encoder, "letters", 0)
    assert first.tolist() == [0, 97, 98, 99, 0, 100, 101]
    assert first.dtype == np.uint16
    second = cached_tokens(text, folder, encoder, "letters", 0)
    assert encoder.calls == 2
    assert isinstance(second, np.memmap)
    np.testing.assert_array_equal(first, second)
    assert [path.suffix for path in folder.iterdir()] == [".npy"]


@pytest.mark.parametrize("change", ["text", "encoder", "separator"])
def test_every_input_is_part_of_the_fingerprint(tmp_path: Path, change: str) -> None:
    text = tmp_path / "story.txt"
    text.write_text("abc")
    before = stream_fingerprint(text, "letters", 0)
    assert before == stream_fingerprint(text, "letters", 0)
    if change == "text":
        text.write_text("abd")
    encoder = "words" if change == "encoder" else "letters"
    separator = None if change == "separator" else 0
    assert stream_fingerprint(text, encoder, separator) != before


def test_a_missing_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.txt"):
        cached_tokens(tmp_path / "gone.txt", tmp_path, CountingEncoder(), "letters", 0)
