"""Interpolated modified Kneser-Ney n-grams over tokens: the baseline a trained model must beat.

Chen and Goodman, "An empirical study of smoothing techniques for language modeling" (1998),
section 3; discounts by their equation 17. With c the count of an n-gram (its number of distinct
left neighbours below the highest order), h its context and h' the context without its first token:

    p(w | h) = max(c(hw) - D(c(hw)), 0) / c(h.) + backoff(h) p(w | h')
    backoff(h) = (D1 N1(h.) + D2 N2(h.) + D3 N3+(h.)) / c(h.)

and the unigram interpolates with the uniform distribution. An n-gram is one integer of base
`vocab_size`, its first token most significant, so that tables are sorted arrays.

Shape suffixes: N n-grams of a table, C contexts of a table, T tokens of a text.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pliant.errors import DataError, UsageError

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class _Table:
    """What one order knows: n-grams with their discounted shares, contexts with their backoffs.

    `grams` and `contexts` are sorted int64 [N] and [C]; `shares` [N] and `backoffs` [C] fp64.
    """

    grams: IntArray
    shares: FloatArray
    contexts: IntArray
    backoffs: FloatArray

    def interpolate(
        self, contexts_T: IntArray, tokens_T: IntArray, lower_T: FloatArray, vocab_size: int
    ) -> FloatArray:
        """p(token | context) given the probabilities of the order below; fp64 [T]."""
        share_T = _look_up(self.grams, self.shares, contexts_T * vocab_size + tokens_T, 0.0)
        # A context that was never seen passes the lower order on unchanged.
        backoff_T = _look_up(self.contexts, self.backoffs, contexts_T, 1.0)
        return share_T + backoff_T * lower_T


@dataclass(frozen=True, eq=False)
class NgramModel:
    """A trained n-gram model; `tables[n - 1]` is the table of order n."""

    vocab_size: int
    tables: tuple[_Table, ...]

    @property
    def order(self) -> int:
        """Length of the longest n-grams, in tokens."""
        return len(self.tables)

    @property
    def num_ngrams(self) -> int:
        """Distinct n-grams of all orders."""
        return sum(table.grams.size for table in self.tables)

    @classmethod
    def train(cls, tokens: NDArray[np.integer], vocab_size: int, order: int = 5) -> NgramModel:
        """Count and smooth all n-grams of one token stream [T]; nothing is pruned.

        Needs about 100 bytes of memory per token at order 5. Raises `DataError` for fewer than
        `order` tokens or ids outside the vocabulary, `UsageError` where n-grams of this order and
        vocabulary do not fit 63 bits.
        """
        _check_stream(tokens, vocab_size, order)
        grams, counts = np.unique(_all_grams(tokens, vocab_size, order), return_counts=True)
        tables = [_smoothed(grams, counts, vocab_size)]
        for lower in range(order - 1, 0, -1):
            # Each distinct longer n-gram is one distinct left neighbour of its ending.
            grams, counts = np.unique(grams % vocab_size**lower, return_counts=True)
            tables.append(_smoothed(grams, counts, vocab_size))
        return cls(vocab_size, tuple(reversed(tables)))

    def log_probabilities(self, tokens: NDArray[np.integer]) -> FloatArray:
        """Natural log p of tokens 1 .. T-1 given up to `order - 1` before each; fp64 [T - 1].

        Token 0 is only context: give the document separator there.
        """
        tokens_T = np.asarray(tokens, dtype=np.int64)
        if tokens_T.size and not 0 <= tokens_T.min() <= tokens_T.max() < self.vocab_size:
            raise DataError(f"token ids must lie in 0 .. {self.vocab_size - 1}")
        targets_T = tokens_T[1:]
        probability_T = np.full(targets_T.size, 1 / self.vocab_size)
        contexts_T = np.zeros(targets_T.size, dtype=np.int64)
        for length, table in enumerate(self.tables):
            # Targets with fewer than `length` tokens before them keep the lower order's answer.
            first = max(length - 1, 0)
            if length:
                earlier_T = tokens_T[: targets_T.size - first]
                contexts_T[first:] += earlier_T * self.vocab_size ** (length - 1)
            probability_T[first:] = table.interpolate(
                contexts_T[first:], targets_T[first:], probability_T[first:], self.vocab_size
            )
        log_T: FloatArray = np.log(probability_T)
        return log_T

    def next_probabilities(self, context: NDArray[np.integer]) -> FloatArray:
        """p of every token after `context` (at most `order - 1` last tokens count); fp64 [V]."""
        known = [int(token) for token in context][max(len(context) - self.order + 1, 0) :]
        everything = np.arange(self.vocab_size, dtype=np.int64)
        probability = np.full(self.vocab_size, 1 / self.vocab_size)
        for length, table in enumerate(self.tables[: len(known) + 1]):
            gram = 0
            for token in known[len(known) - length :]:
                gram = gram * self.vocab_size + token
            same = np.full(self.vocab_size, gram, dtype=np.int64)
            probability = table.interpolate(same, everything, probability, self.vocab_size)
        return probability


def _check_stream(tokens: NDArray[np.integer], vocab_size: int, order: int) -> None:
    if order < 1 or vocab_size**order >= 1 << 63:
        raise UsageError(
            f"{order}-grams over {vocab_size} tokens do not fit 63 bits; use a lower order"
        )
    if tokens.size < order:
        raise DataError(
            f"{order}-grams were asked for but the text has {tokens.size} tokens; give more text"
        )
    if int(tokens.max()) >= vocab_size:
        raise DataError(f"token {int(tokens.max())} is outside the vocabulary of {vocab_size}")


def _all_grams(tokens: NDArray[np.integer], vocab_size: int, order: int) -> IntArray:
    """Every n-gram of the stream as an integer, in text order."""
    count = tokens.size - order + 1
    grams = np.zeros(count, dtype=np.int64)
    for place in range(order):
        grams *= vocab_size
        grams += tokens[place : place + count]
    return grams


def _discounts(counts: IntArray) -> FloatArray:
    """Discounts of counts 0, 1, 2 and 3 or more, fp64 [4] (Chen and Goodman, equation 17)."""
    ones, twos, threes, fours = (int((counts == value).sum()) for value in (1, 2, 3, 4))
    if min(ones, twos, threes, fours) == 0:
        # Tiny texts lack some of the counts; plain absolute discounting is defined for all.
        return np.array([0.0, 0.5, 0.5, 0.5])
    scale = ones / (ones + 2 * twos)
    three = 3 - 4 * scale * fours / threes
    discounts = np.array([0.0, 1 - 2 * scale * twos / ones, 2 - 3 * scale * threes / twos, three])
    # A count may not lose more than it has, nor gain: else shares would leave 0 .. 1.
    clipped: FloatArray = np.clip(discounts, 0.0, [0.0, 1.0, 2.0, 3.0])
    return clipped


def _smoothed(grams_N: IntArray, counts_N: IntArray, vocab_size: int) -> _Table:
    contexts_C, first_C = np.unique(grams_N // vocab_size, return_index=True)
    total_C = np.add.reduceat(counts_N, first_C).astype(np.float64)
    discount_N = _discounts(counts_N)[np.minimum(counts_N, 3)]
    backoffs_C = np.add.reduceat(discount_N, first_C) / total_C
    sizes_C = np.diff(np.append(first_C, grams_N.size))
    shares_N = (counts_N - discount_N) / np.repeat(total_C, sizes_C)
    return _Table(grams_N, shares_N, contexts_C, backoffs_C)


def _look_up(keys: IntArray, values: FloatArray, wanted_T: IntArray, missing: float) -> FloatArray:
    """The value of each wanted key in a sorted table, `missing` where it is not there."""
    place_T = np.minimum(np.searchsorted(keys, wanted_T), keys.size - 1)
    return np.where(keys[place_T] == wanted_T, values[place_T], missing)
