"""`Chunk`: tokens of one sequence to be computed in one forward call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pliant.errors import GenerationError, UsageError

#: Which logits of a chunk are computed: of its last token, of every token, or none.
Logits = Literal["last", "all", "none"]


@dataclass(frozen=True, eq=False)
class Chunk:
    """Consecutive tokens of one sequence, its cache, and which logits are wanted.

    - `tokens`: n >= 1 ids, integers `[n]`; kept as int32. They are appended to `cache`, which the
      engine that runs the chunk has made.
    - `positions`: integers `[n]` for the rotation and for sliding windows; those that follow the
      cache unless given.
    - `mask`: bool `[n, n]`, row sees column, for token trees (SpecInfer, arXiv 2305.09781). Every
      token sees itself and none sees a later one; what the cache holds is seen by all. Without a
      mask each token sees all before it.

    Anything of another type or shape raises `UsageError`, ids beyond int32 `GenerationError`.
    """

    tokens: NDArray[np.int32]
    cache: Any
    positions: NDArray[np.int32] | None = None
    mask: NDArray[np.bool_] | None = None
    logits: Logits = "last"

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", _integers(self.tokens, "tokens"))
        if self.positions is not None:
            object.__setattr__(self, "positions", _integers(self.positions, "positions"))
        if self.mask is not None:
            object.__setattr__(self, "mask", _square(self.mask, self.tokens.size))
        if self.logits not in ("last", "all", "none"):
            raise UsageError(f"Logits {self.logits!r} were asked for; ask for last, all or none.")

    @property
    def num_logits(self) -> int:
        """Rows of logits that this chunk asks for."""
        if self.logits == "last":
            return 1
        return self.tokens.size if self.logits == "all" else 0


def _integers(values: Any, name: str) -> NDArray[np.int32]:
    """`values` as a contiguous int32 vector, exactly."""
    array = np.asarray(values)
    if array.dtype == np.int32 and array.ndim == 1:
        return np.ascontiguousarray(array)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise UsageError(
            f"A chunk's {name} are one row of integers; found {array.dtype}{list(array.shape)}."
        )
    limits = np.iinfo(np.int32)
    if array.size and not limits.min <= int(array.min()) <= int(array.max()) <= limits.max:
        raise GenerationError(f"A chunk's {name} reach {array.max()}, which is no 32-bit integer.")
    return array.astype(np.int32)


def _square(mask: Any, size: int) -> NDArray[np.bool_]:
    array = np.asarray(mask)
    if array.dtype != np.bool_ or array.shape != (size, size):
        raise UsageError(
            f"The mask of {size} tokens is bool[{size}, {size}]; "
            f"found {array.dtype}{list(array.shape)}."
        )
    return np.ascontiguousarray(array)
