"""A token stream on disk: encoded once, mapped afterwards, named by the hash of its inputs."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pliant.data.documents import read_documents
from pliant.data.tokens import TokenArray, encode_corpus
from pliant.errors import DataError

# Part of every fingerprint: raise it when the same text would give another stream.
_FORMAT = "pliant tokens 1"


def stream_fingerprint(text: Path, encoder_fingerprint: str, separator_id: int | None) -> str:
    """SHA-256 (hex) of all that decides the token stream of `text`.

    `encoder_fingerprint` must change whenever the tokenizer would give other ids.
    Raises `DataError` when the text cannot be read.
    """
    try:
        with text.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(
            f"cannot read the text file {text}: {error.strerror}; give an existing .txt or .txt.xz"
        ) from error
    inputs = f"{_FORMAT}\n{content}\n{encoder_fingerprint}\n{separator_id}\n"
    return hashlib.sha256(inputs.encode()).hexdigest()


def cached_tokens(
    text: Path,
    folder: Path,
    encode: Callable[[str], list[int]],
    encoder_fingerprint: str,
    separator_id: int | None,
) -> TokenArray:
    """The token stream of a text file as a read-only memory map, encoded on first use.

    The map is a `.npy` in `folder`, `uint16` or `uint32` [num_tokens], named after the text and
    its `stream_fingerprint`, so a stream of other inputs is never taken by mistake. It is written
    under a temporary name and renamed. Raises `DataError` as `read_documents` does.
    """
    fingerprint = stream_fingerprint(text, encoder_fingerprint, separator_id)
    target = folder / f"{text.name.split('.')[0]}-{fingerprint[:16]}.npy"
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        stream = encode_corpus(read_documents(text), encode, separator_id)
        partial = target.with_suffix(f".{os.getpid()}.partial")
        with partial.open("wb") as file:
            np.save(file, stream, allow_pickle=False)
        partial.replace(target)
    mapped: TokenArray = np.load(target, mmap_mode="r", allow_pickle=False)
    return mapped
