"""Token streams: documents to one array of token ids, arrays to windows. Pure NumPy, seeded."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from pliant.errors import DataError

TokenArray = NDArray[np.uint16] | NDArray[np.uint32]

_UINT16_LIMIT = 1 << 16


def encode_corpus(
    documents: Iterable[str],
    encode: Callable[[str], list[int]],
    separator_id: int | None,
) -> TokenArray:
    """All documents as one token stream, `separator_id` before each of them (unless None).

    Returns one-dimensional `uint16` ids, or `uint32` where an id does not fit 16 bits.
    Raises `DataError` when the documents give no token at all.
    """
    parts: list[NDArray[np.uint32]] = []
    num_text_tokens = 0
    for document in documents:
        ids = np.asarray(encode(document), dtype=np.uint32)
        num_text_tokens += ids.size
        if separator_id is not None:
            parts.append(np.asarray([separator_id], dtype=np.uint32))
        parts.append(ids)
    if num_text_tokens == 0:
        raise DataError(
            f"the text gives no tokens: {len(parts)} documents were read and all are empty; "
            "give a text with at least one word"
        )
    stream = np.concatenate(parts)
    return stream.astype(np.uint16) if int(stream.max()) < _UINT16_LIMIT else stream


def token_windows(
    tokens: NDArray[np.integer], length: int, count: int, seed: int
) -> NDArray[np.int64]:
    """`count` windows of `length` consecutive tokens, `int64` [count, length].

    The windows lie on a grid of pitch `length` (one seeded offset for all) and are drawn without
    replacement, so they do not overlap while the grid has `count` cells; beyond that, windows at
    seeded arbitrary positions fill up. The same arguments give the same windows on every machine.
    Raises `DataError` for non-positive sizes and for a stream shorter than one window.
    """
    if length < 1 or count < 1:
        raise DataError(f"{count} windows of {length} tokens were asked for; both must be >= 1")
    if tokens.ndim != 1:
        raise DataError(f"a token stream has one dimension, this one has shape {tokens.shape}")
    if tokens.size < length:
        raise DataError(
            f"a window of {length} tokens was asked for but the text has only {tokens.size} "
            "tokens; give a longer text or a shorter window"
        )
    random = np.random.default_rng(seed)
    num_cells = tokens.size // length
    offset = int(random.integers(tokens.size - num_cells * length + 1))
    starts = offset + length * random.permutation(num_cells)[:count]
    if count > num_cells:
        extra = random.integers(tokens.size - length + 1, size=count - num_cells)
        starts = np.concatenate([starts, extra])
    windows: NDArray[np.int64] = tokens[starts[:, None] + np.arange(length)].astype(np.int64)
    return windows


def bytes_per_token(documents: Iterable[str], encode: Callable[[str], list[int]]) -> float:
    """UTF-8 bytes of the documents divided by their tokens, separators not counted.

    Raises `DataError` when the documents give no token.
    """
    num_bytes = num_tokens = 0
    for document in documents:
        num_bytes += len(document.encode("utf-8"))
        num_tokens += len(encode(document))
    if num_tokens == 0:
        raise DataError("bytes per token of an empty text are undefined; give a text with words")
    return num_bytes / num_tokens
