"""Non-negative least squares of a few terms, relative to what was measured."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

#: Rounds of projected coordinate descent; each is exact in one coordinate, the terms are few.
_ROUNDS = 20_000
_CHANGE = 1e-12


def relative_fit(
    sizes_NT: NDArray[np.float64],
    seconds_N: NDArray[np.float64],
    prior_T: NDArray[np.float64] | None = None,
    strength_T: NDArray[np.float64] | None = None,
    weight_N: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """The x >= 0 `[T]` that makes `sizes @ x` near `seconds`, all errors relative to `seconds`.

    N samples, T terms. `prior` and `strength` pull terms that the samples hardly tell apart
    towards a known value, by `strength` of all the samples that a term is seen in. `weight` (ones)
    multiplies the errors of samples. Solved by
    coordinate descent, which for this convex problem (Lawson and Hanson's NNLS) ends at the
    optimum.
    """
    weights_N = np.ones(len(seconds_N)) if weight_N is None else weight_N
    scaled_NT = sizes_NT * (weights_N / seconds_N)[:, None]
    scale_T = np.linalg.norm(scaled_NT, axis=0)
    scale_T[scale_T == 0] = 1.0
    pull_T = np.zeros(len(scale_T)) if strength_T is None else strength_T
    unit_NT = scaled_NT / scale_T
    gram_TT = unit_NT.T @ unit_NT + np.diag(pull_T)
    target_T = unit_NT.T @ weights_N
    if prior_T is not None:
        target_T = target_T + pull_T * prior_T * scale_T
    x_T = np.zeros(len(scale_T))
    for _ in range(_ROUNDS):
        change = 0.0
        for term in range(len(x_T)):
            if gram_TT[term, term] == 0:
                continue
            residual = target_T[term] - gram_TT[term] @ x_T
            moved = max(0.0, x_T[term] + residual / gram_TT[term, term])
            change = max(change, abs(moved - x_T[term]))
            x_T[term] = moved
        if change < _CHANGE:
            break
    found_T: NDArray[np.float64] = x_T / scale_T
    return found_T


def median_error(foreseen_N: NDArray[np.float64], measured_N: NDArray[np.float64]) -> float:
    """Median of |foreseen / measured - 1|."""
    return float(np.median(np.abs(foreseen_N / measured_N - 1.0)))


def rank_correlation(first_N: NDArray[np.float64], second_N: NDArray[np.float64]) -> float:
    """Spearman's correlation of ranks; equal values share their mean rank. 1.0 for one sample."""
    ranks = [_ranks(values) for values in (first_N, second_N)]
    centred = [values - values.mean() for values in ranks]
    spread = float(np.linalg.norm(centred[0]) * np.linalg.norm(centred[1]))
    return float(centred[0] @ centred[1]) / spread if spread else 1.0


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    mean: NDArray[np.float64] = (ends - (counts - 1) / 2.0)[places]
    return mean
