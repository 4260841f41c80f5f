"""`PrefixIndex`: which cache begins with the tokens of a new prompt."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pliant.serve.scheduling.pool import Holding


class PrefixIndex:
    """Finds holdings by chained hashes of whole pages of their tokens.

    A hash only finds a candidate: what is shared is then counted token by token, so a collision
    can cost a miss and never a wrong match.
    """

    def __init__(self, page_tokens: int) -> None:
        self._page_tokens = page_tokens
        self._holdings: dict[int, dict[int, Holding]] = {}
        #: Keys of the whole pages of each cache, so far.
        self._keys: dict[int, list[int]] = {}

    def extend(self, holding: Holding) -> None:
        """Add the pages that a holding has completed since the last call."""
        keys = self._keys.setdefault(holding.cache, [])
        if len(holding.tokens) < (len(keys) + 1) * self._page_tokens:
            return
        for key in self._chain(holding.lane.name, holding.salt, holding.tokens, keys):
            keys.append(key)
            self._holdings.setdefault(key, {})[holding.cache] = holding

    def remove(self, holding: Holding) -> None:
        """Forget a holding."""
        for key in self._keys.pop(holding.cache, []):
            holdings = self._holdings[key]
            holdings.pop(holding.cache, None)
            if not holdings:
                del self._holdings[key]

    def match(self, lane: str, salt: str, tokens: list[int]) -> tuple[Holding, int] | None:
        """The holding that shares most of `tokens[:-1]`, at least a page, and how many."""
        deepest: dict[int, Holding] = {}
        for key in self._chain(lane, salt, tokens[:-1], []):
            if key not in self._holdings:
                break
            deepest = self._holdings[key]
        best: tuple[Holding, int] | None = None
        for holding in deepest.values():
            if holding.lane.name == lane and holding.salt == salt:
                shared = _shared(holding.tokens, tokens[:-1])
                if shared >= self._page_tokens and (best is None or shared > best[1]):
                    best = holding, shared
        return best

    def _chain(self, lane: str, salt: str, tokens: list[int], known: list[int]) -> Iterator[int]:
        """Keys of the whole pages of `tokens` behind the known ones."""
        key = known[-1] if known else hash((lane, salt))
        size = self._page_tokens
        for begin in range(len(known) * size, len(tokens) - size + 1, size):
            key = hash((key, *tokens[begin : begin + size]))
            yield key


def _shared(first: list[int], second: list[int]) -> int:
    """Length of the common prefix."""
    length = min(len(first), len(second))
    if first[:length] == second[:length]:
        return length
    return next(place for place in range(length) if first[place] != second[place])
