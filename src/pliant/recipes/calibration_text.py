"""Calibration windows of a text: one part finds orders, another chooses and measures.

Shape suffixes: B sequences, T tokens.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pliant.data import (
    default_calibration_text,
    encode_corpus,
    read_documents,
    split_documents,
    token_windows,
)
from pliant.errors import DataError
from pliant.runtime import Tokenizer
from pliant.spec import ModelSpec


@dataclass(frozen=True, eq=False)
class CalibrationTokens:
    """Two disjoint sets of windows, int64 `[B, T]`, and where they come from."""

    orders_BT: NDArray[np.int64]
    choices_BT: NDArray[np.int64]
    description: str

    @property
    def num_tokens(self) -> int:
        """Tokens of both sets."""
        return self.orders_BT.size + self.choices_BT.size

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the tokens, in which text, tokenizer, seed and sizes all show."""
        parts = (self.orders_BT, self.choices_BT)
        content = b"".join(np.ascontiguousarray(part, "<i8").tobytes() for part in parts)
        return hashlib.sha256(content).hexdigest()


def calibration_windows(
    spec: ModelSpec,
    tokenizer: Tokenizer,
    text: str | Path | None,
    windows: int,
    window_tokens: int,
    seed: int,
) -> CalibrationTokens:
    """`windows` windows for orders and as many for choices, which no window of the first overlaps.

    `text` is a file (None: the packaged excerpt). Windows are at most as long as the context and
    start where they fall, each document behind the start token. A text too short for all windows
    gives fewer, and `DataError` where it does not hold two.
    """
    length = min(window_tokens, spec.max_context)
    if text is None:
        documents, description = split_documents(default_calibration_text()), "packaged excerpt"
    else:
        documents, description = read_documents(Path(text)), Path(text).name
    tokens = encode_corpus(
        documents, lambda document: tokenizer.encode(document, add_bos=False), tokenizer.start_id
    )
    available = tokens.size // length
    if available < 2:
        raise DataError(
            f"The calibration text has {tokens.size} tokens; two windows of {length} are needed "
            f"at least, and {2 * windows} are wanted. Give a longer text."
        )
    each = min(windows, available // 2)
    drawn_BT = token_windows(tokens, length, 2 * each, seed)
    return CalibrationTokens(drawn_BT[:each], drawn_BT[each:], description)
