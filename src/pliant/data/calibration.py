"""Calibration samples: the token windows that statistics and tuning look at."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pliant.data.documents import default_calibration_text, read_documents, split_documents
from pliant.data.tokens import encode_corpus, token_windows


def calibration_windows(
    text: Path | None,
    encode: Callable[[str], list[int]],
    separator_id: int | None,
    length: int,
    count: int,
    seed: int,
) -> NDArray[np.int64]:
    """`count` windows of `length` tokens from a text file, int64 [count, length].

    Without a file (None) the packaged public-domain text is used. The same arguments give the
    same windows. Raises `DataError` for text that is missing, empty, not UTF-8, or shorter than
    one window.
    """
    if text is None:
        documents = split_documents(default_calibration_text())
    else:
        documents = read_documents(text)
    return token_windows(encode_corpus(documents, encode, separator_id), length, count, seed)
