"""`TokenModel`: what generation and evaluation need of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pliant.runtime.chunk import Chunk


class Cache(Protocol):
    """Keys and values of one sequence; made by `new_cache` and only used with its maker."""

    @property
    def length(self) -> int:
        """Tokens held."""

    @property
    def capacity(self) -> int:
        """Most tokens it can hold."""

    @property
    def num_bytes(self) -> int:
        """Bytes reserved for `capacity` tokens."""

    def truncate(self, length: int) -> None:
        """Forget the tokens from `length` on; `UsageError` where there are fewer."""

    def clone(self) -> Any:
        """An independent copy with the same tokens and capacity."""


class TokenModel(Protocol):
    """Logits of the next token for chunks of cached sequences."""

    @property
    def vocab_size(self) -> int:
        """Number of logits."""

    @property
    def max_context(self) -> int:
        """Most tokens of one sequence."""

    def new_cache(self, capacity: int, max_bytes: int | None = None) -> Any:
        """An empty `Cache` for `capacity` tokens, or for as many as fit into `max_bytes`."""

    def forward_chunk(self, chunks: Sequence[Chunk]) -> list[NDArray[np.float32]]:
        """Append each chunk to its cache; its logits, float32 `[n or 1 or 0, vocabulary]`."""
