"""Text corpora on disk: plain or xz-compressed UTF-8, documents separated by one marker line."""

from __future__ import annotations

import lzma
import re
from importlib import resources
from pathlib import Path

from pliant.errors import DataError

DOCUMENT_SEPARATOR = "<|endoftext|>"

_SEPARATOR_LINE = re.compile(rf"^{re.escape(DOCUMENT_SEPARATOR)}(?=\r?$)", re.MULTILINE)
_FIRST_LINE_END = re.compile(r"\A\r?\n")
_LAST_LINE_END = re.compile(r"\r?\n\Z")


def read_text(path: Path) -> str:
    """The whole text of a `.txt` or `.txt.xz` file, line ends untouched.

    Raises `DataError` when the file is missing, is not xz although named so, or is not UTF-8.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"cannot read the text file {path}: {error.strerror}; give an existing .txt or .txt.xz"
        ) from error
    if path.suffix == ".xz":
        try:
            raw = lzma.decompress(raw)
        except lzma.LZMAError as error:
            raise DataError(
                f"{path} is named .xz but does not unpack ({error}); download or pack it again"
            ) from error
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8: byte {raw[error.start]:#04x} at offset {error.start}; "
            f"convert it first, for example with iconv -t UTF-8"
        ) from error


def split_documents(text: str) -> list[str]:
    """Documents of `text`: split at lines equal to `<|endoftext|>`, blank documents dropped.

    Line ends next to a separator belong to the separator; everything else is kept byte for byte.
    A text without a separator is one document.
    """
    pieces = _SEPARATOR_LINE.split(text)
    last = len(pieces) - 1
    for index, piece in enumerate(pieces):
        after_separator = _FIRST_LINE_END.sub("", piece) if index > 0 else piece
        pieces[index] = _LAST_LINE_END.sub("", after_separator) if index < last else after_separator
    return [piece for piece in pieces if piece.strip()]


def read_documents(path: Path) -> list[str]:
    """Documents of a `.txt` or `.txt.xz` file, in file order.

    Documents end at lines equal to `<|endoftext|>`; without such a line the whole file is one.
    Raises `DataError` for a missing, damaged or non-UTF-8 file and for one that holds no text.
    """
    documents = split_documents(read_text(path))
    if not documents:
        raise DataError(f"{path} holds no text; give a file with at least one non-blank document")
    return documents


def default_calibration_text() -> str:
    """The packaged public-domain text (about 150 KB) used when no calibration text is given.

    Documents are separated by a line `<|endoftext|>`. It must not be used to report quality.
    """
    packed = resources.files("pliant.data").joinpath("default_calibration.txt.xz").read_bytes()
    return lzma.decompress(packed).decode("utf-8")
