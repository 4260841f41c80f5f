"""A training mixture: windows of several streams in fixed shares, a pure function of the step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pliant.data.tokens import TokenArray
from pliant.errors import DataError


@dataclass(frozen=True)
class Source:
    """One token stream of a mixture and the share of each batch's windows that it gives."""

    name: str
    tokens: TokenArray
    share: float


class Mixture:
    """Batches of windows from several sources, drawn without replacement within each epoch.

    Windows of one length lie on a grid over the source; an epoch visits every cell once in a
    seeded order, and every epoch shifts the grid. Which windows a step gets depends only on the
    seed, the step, the length and the batch size, so a resumed run sees what an uninterrupted one
    would. Shares must sum to one; the last source takes what rounding leaves.
    """

    def __init__(self, sources: Sequence[Source], seed: int) -> None:
        if not sources or abs(sum(source.share for source in sources) - 1) > 1e-6:
            shares = {source.name: source.share for source in sources}
            raise DataError(f"shares of a mixture must sum to 1, found {shares}")
        self._sources = tuple(sources)
        self._seed = seed

    def windows(self, step: int, count: int, length: int) -> NDArray[np.int64]:
        """The `count` windows of `length` tokens of one step, int64 [count, length].

        Raises `DataError` when a source is shorter than two windows.
        """
        counts = [round(count * source.share) for source in self._sources[:-1]]
        counts.append(count - sum(counts))
        parts = [
            self._source_windows(index, step * source_count, source_count, length)
            for index, source_count in enumerate(counts)
        ]
        return np.concatenate(parts)

    def _source_windows(self, index: int, first: int, count: int, length: int) -> NDArray[np.int64]:
        source = self._sources[index]
        # One cell is given up so that a shifted grid still ends inside the stream.
        num_cells = source.tokens.size // length - 1
        if num_cells < 1:
            raise DataError(
                f"source {source.name} has {source.tokens.size} tokens, fewer than two windows "
                f"of {length}; give more text or shorter windows"
            )
        windows = np.empty((count, length), dtype=np.int64)
        for row, position in enumerate(range(first, first + count)):
            epoch, cell = divmod(position, num_cells)
            order, shift = _epoch_order(self._seed, index, epoch, num_cells, length)
            start = shift + int(order[cell]) * length
            windows[row] = source.tokens[start : start + length]
        return windows


# Two epochs meet in a batch at most; a few sources and lengths are in use at a time.
@lru_cache(maxsize=16)
def _epoch_order(
    seed: int, index: int, epoch: int, num_cells: int, length: int
) -> tuple[NDArray[np.int64], int]:
    random = np.random.default_rng([seed, index, epoch, length])
    return random.permutation(num_cells), int(random.integers(length))
