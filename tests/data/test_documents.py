"""Reading corpora: separators, compression, and every way a file can be unusable."""

from __future__ import annotations

import lzma
from pathlib import Path

import pytest

from pliant.data import default_calibration_text, read_documents, read_text, split_documents
from pliant.errors import DataError


@pytest.mark.parametrize(
    ("text", "documents"),
    [
        ("one\n\ntwo\n", ["one\n\ntwo\n"]),
        ("a\n<|endoftext|>\nb", ["a", "b"]),
        ("a\r\n<|endoftext|>\r\nb\r\n", ["a", "b\r\n"]),
        ("<|endoftext|>\na\n<|endoftext|>\n<|endoftext|>\n \n<|endoftext|>\n\nb", ["a", "\nb"]),
        (
            "in <|endoftext|> line\nand\n <|endoftext|>",
            ["in <|endoftext|> line\nand\n <|endoftext|>"],
        ),
        ("line\u2028separator\x0ckept", ["line\u2028separator\x0ckept"]),
        ("\n<|endoftext|>\n", []),
    ],
)
def test_documents_end_at_separator_lines(text: str, documents: list[str]) -> None:
    assert split_documents(text) == documents


def test_joined_documents_come_back(tmp_path: Path) -> None:
    documents = ["First.\n\nStill first.", "Zweites \U0001f642", "third"]
    path = tmp_path / "corpus.txt.xz"
    path.write_bytes(lzma.compress("\n<|endoftext|>\n".join(documents).encode()))
    assert read_documents(path) == documents


def test_text_is_read_byte_for_byte(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(b"a\r\nb\rc\n")
    assert read_text(path) == "a\r\nb\rc\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", b"", "holds no text"),
        ("blank.txt", b" \n\n<|endoftext|>\n", "holds no text"),
        ("latin.txt", b"caf\xe9 au lait", "not UTF-8: byte 0xe9 at offset 3"),
        ("plain.txt.xz", b"not packed", "does not unpack"),
        ("cut.txt.xz", lzma.compress(b"text " * 100)[:-9], "does not unpack"),
    ],
)
def test_unusable_files_say_why(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_documents(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.txt"):
        read_documents(tmp_path / "nowhere.txt")


def test_the_packaged_text_is_ready_to_use() -> None:
    text = default_calibration_text()
    assert 120_000 < len(text.encode()) < 180_000
    assert len(split_documents(text)) > 5
