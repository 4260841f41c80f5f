"""BLiMP on an archive made here: accuracy per phenomenon, ties, damaged input."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest

from pliant.errors import DataError
from pliant.evaluate.blimp import blimp, read_pairs


def archive_of(path: Path, phenomena: dict[str, list[dict[str, str]]]) -> Path:
    with tarfile.open(path, "w:xz") as files:
        for name, records in phenomena.items():
            content = "\n".join(json.dumps(record) for record in records).encode()
            member = tarfile.TarInfo(f"blimp/{name}.jsonl")
            member.size = len(content)
            files.addfile(member, io.BytesIO(content))
    return path


def pair(good: str, bad: str) -> dict[str, str]:
    return {"sentence_good": good, "sentence_bad": bad, "UID": "x"}


def shorter_is_likelier(sentences: list[str]) -> list[float]:
    return [-float(len(sentence)) for sentence in sentences]


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return archive_of(
        tmp_path / "blimp.tar.xz",
        {
            "won": [pair("a", "aaa"), pair("b", "bb")],
            "half": [pair("a", "aa"), pair("aa", "a")],
            "tied": [pair("ab", "ba")],
        },
    )


def test_accuracy_is_per_phenomenon_and_ties_count_half(archive: Path) -> None:
    result = blimp(archive, shorter_is_likelier)
    assert result.accuracy == {"half": 0.5, "tied": 0.5, "won": 1.0}
    assert result.num_pairs == {"half": 2, "tied": 1, "won": 2}
    assert result.mean == pytest.approx(2 / 3)


def test_the_first_pairs_can_be_taken(archive: Path) -> None:
    assert blimp(archive, shorter_is_likelier, pairs_per_phenomenon=1).accuracy["half"] == 1.0


def test_pairs_are_read_in_order(archive: Path) -> None:
    names = [name for name, _ in read_pairs(archive)]
    assert names == ["won", "half", "tied"]


def test_unusable_archives_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read"):
        blimp(tmp_path / "missing.tar.xz", shorter_is_likelier)
    damaged = tmp_path / "damaged.tar.xz"
    damaged.write_bytes(b"no archive")
    with pytest.raises(DataError, match="cannot read"):
        blimp(damaged, shorter_is_likelier)
    with pytest.raises(DataError, match="no minimal pairs"):
        blimp(archive_of(tmp_path / "empty.tar.xz", {}), shorter_is_likelier)
    with pytest.raises(DataError, match="sentence_good"):
        blimp(archive_of(tmp_path / "odd.tar.xz", {"odd": [{"a": "b"}]}), shorter_is_likelier)
