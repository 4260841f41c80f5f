"""What a draw is, in NumPy: the reference of the native sampler."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from pliant.runtime import SamplingOptions

#: Tokens looked at first when top-p searches its nucleus; times eight until they hold the mass.
_FIRST_NUCLEUS = 64


def adjusted(
    logits_V: NDArray[np.float32],
    *,
    logit_bias: Mapping[int, float] | None = None,
    counts: Mapping[int, int] | None = None,
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
    excluded: Iterable[int] = (),
    allowed_V: NDArray[np.bool_] | None = None,
    seen: Iterable[int] = (),
    repetition_penalty: float = 1.0,
) -> NDArray[np.float32]:
    """Scores: the logits with all that a text asks for; `counts` is how often it has a token."""
    scores_V = logits_V.copy()
    for token, bias in (logit_bias or {}).items():
        scores_V[token] += np.float32(bias)
    for token, count in (counts or {}).items():
        scores_V[token] -= np.float32(presence_penalty + frequency_penalty * count)
    scores_V[list(excluded)] = -np.inf
    if allowed_V is not None:
        scores_V[~allowed_V] = -np.inf
    if repetition_penalty != 1:
        penalty, ids = np.float32(repetition_penalty), sorted({*seen})
        before = scores_V[ids]
        scores_V[ids] = np.where(before < 0, before * penalty, before / penalty)
    return scores_V


def log_probabilities(
    logits_V: NDArray[np.float32], token: int, count: int
) -> tuple[float, list[tuple[int, float]]]:
    """Natural log-probabilities, in float64, of `token` and of the `count` likeliest tokens."""
    logits = logits_V.astype(np.float64)
    logits -= logits.max()
    logprobs = logits - np.log(np.exp(logits).sum())
    count = min(count, len(logprobs))
    likely = np.arange(0)
    if count:
        # With the equals of the last, of which the lower ids come first.
        edge = np.partition(logprobs, len(logprobs) - count)[len(logprobs) - count]
        likely = np.flatnonzero(logprobs >= edge)
        likely = likely[np.lexsort((likely, -logprobs[likely]))][:count]
    return float(logprobs[token]), [(int(one), float(logprobs[one])) for one in likely]


def draw(scores_V: NDArray[np.float32], options: SamplingOptions, uniform: float) -> int:
    """The token at `uniform`, in [0, 1), of the inverse of the cumulative distribution."""
    if options.temperature == 0:
        return int(np.argmax(scores_V))
    ids, cumulative = cumulative_distribution(scores_V, options)
    place = np.searchsorted(cumulative, uniform * cumulative[-1], side="right")
    return int(ids[min(int(place), len(ids) - 1)])


def cumulative_distribution(
    scores_V: NDArray[np.float32], options: SamplingOptions
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The tokens that may be drawn, ids ascending, and the sums of their probabilities so far."""
    ids, probabilities = distribution(scores_V, options)
    return ids, np.cumsum(probabilities, dtype=np.float64)


def distribution(
    scores_V: NDArray[np.float32], options: SamplingOptions
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The tokens that may be drawn, ids ascending, and their probabilities, which sum to 1.

    `options.temperature` is above 0. Probabilities are float32.
    """
    kept = _top_k(scores_V, options.top_k)
    weights = scores_V[kept]
    weights -= weights.max()
    with np.errstate(over="ignore"):
        weights /= np.float32(options.temperature)
    np.exp(weights, out=weights)
    kept, weights = _nucleus(weights, kept, options.top_p)
    # The likeliest token has weight 1.
    if options.min_p > 0:
        likely = weights >= np.float32(options.min_p)
        kept, weights = kept[likely], weights[likely]
    return kept, weights / weights.sum(dtype=np.float64).astype(np.float32)


def _top_k(scores_V: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Ids, ascending, of the `k` largest scores and of those equal to the last of them."""
    if not 0 < k < len(scores_V):
        return np.arange(len(scores_V))
    place = len(scores_V) - k
    return np.flatnonzero(scores_V >= np.partition(scores_V, place)[place])


def _nucleus(
    weights: NDArray[np.float32], ids: NDArray[np.int64], top_p: float
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Those of `ids`, ascending, that are the likeliest and have less than `top_p` before them.

    `weights` are those of `ids`; the kept ones' are returned beside them.

    Weights below `(1 - top_p) / n` of the sum of all n cannot belong: together they stay below
    `1 - top_p`. Of the others only as many as needed are put in order, because a nucleus is small
    beside a vocabulary.
    """
    if top_p >= 1:
        return ids, weights
    total = float(weights.sum(dtype=np.float64))
    # Half, so that rounding cannot exclude a token at the edge.
    likely = np.flatnonzero(weights >= np.float32(0.5 * (1 - top_p) * total / len(ids)))
    ids, weights = ids[likely], weights[likely]
    falling = -weights.astype(np.float64)
    size = _FIRST_NUCLEUS
    while True:
        size = min(size, len(ids))
        # With all equals of the last, among which the lower id goes first.
        order = np.flatnonzero(falling <= np.partition(falling, size - 1)[size - 1])
        order = order[np.argsort(falling[order], kind="stable")]
        before = falling[order] - np.cumsum(falling[order])
        inside = before < top_p * total
        if len(order) == len(ids) or not inside[-1]:
            kept = np.sort(order[inside])
            return ids[kept], weights[kept]
        size *= 8
