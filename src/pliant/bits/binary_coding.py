"""Binary coding: weights as sums of plus and minus a few scales, which are sums of powers of two.

D weights that share scales `a_1 >= ... >= a_q >= 0` are coded as `w' = sum_i a_i * (+1 or -1)`. The
scales start greedily, each the mean size of what the ones before left over, then least squares and
the nearest of the 2^q sums take turns (BCQ, arXiv 1811.00025). Each scale is rounded to a sum of at
most three powers of two with signs, so that a product with it is shifts and additions (ShiftAddLLM,
arXiv 2406.05981). Rounding makes errors that are not sure to fall, so the best round is kept.
Shape suffixes: N sets of weights, D weights of a set, q scales, L = 2^q sums.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: Terms of a scale, as ShiftAddLLM: three leave 0.5 % of it on average.
POWER_TERMS = 3
#: Rounds after which the published code stops is 50; errors stand still long before.
ROUNDS = 20
#: fp16 holds multiples of 2^-24 up to 2^16 - 2^5, with 11 digits.
_LEAST_EXPONENT, _SPAN, _LARGEST = -24, 10, 65504.0
#: A round that lowers no error by more than this part ends the search.
_STANDSTILL = 1e-4
_RIDGE = 1e-6

Float = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class BinaryCode:
    """Scales fp64 `[N, q]`, falling, each an fp16 sum of powers of two, and the 2^q sums of each.

    `sums_NL` are ascending; number l of them is coded by the signs `signs_NLq`, bool, True for +1.
    """

    scale_Nq: Float
    sums_NL: Float
    signs_NLq: NDArray[np.bool_]

    @classmethod
    def of(cls, scale_Nq: Float) -> BinaryCode:
        """The sums of given scales."""
        count = scale_Nq.shape[1]
        number_L1 = np.arange(2**count)[:, None]
        signs_Lq = number_L1 >> np.arange(count)[::-1] & 1 == 1
        sums_NL = np.where(signs_Lq, scale_Nq[:, None], -scale_Nq[:, None]).sum(axis=2)
        order_NL = np.argsort(sums_NL, axis=1, kind="stable")
        return cls(scale_Nq, np.take_along_axis(sums_NL, order_NL, 1), signs_Lq[order_NL])

    def of_sets(self, sets: NDArray[np.intp] | NDArray[np.bool_]) -> BinaryCode:
        """Of these sets alone."""
        return BinaryCode(self.scale_Nq[sets], self.sums_NL[sets], self.signs_NLq[sets])

    def nearest(self, weight_ND: Float) -> NDArray[np.intp]:
        """Number of the sum nearest to each weight; the lower one in the middle."""
        middles_NL = (self.sums_NL[:, 1:] + self.sums_NL[:, :-1]) / 2
        number_ND = np.zeros(weight_ND.shape, np.intp)
        for middle_N in middles_NL.T:
            number_ND += weight_ND > middle_N[:, None]
        return number_ND

    def values(self, number_ND: NDArray[np.intp]) -> Float:
        """The sums of these numbers."""
        return np.take_along_axis(self.sums_NL, number_ND, 1)

    def signs(self, number_ND: NDArray[np.intp]) -> NDArray[np.bool_]:
        """Their signs, bool `[q, N, D]`."""
        rows_N1 = np.arange(len(number_ND))[:, None]
        return np.moveaxis(self.signs_NLq[rows_N1, number_ND], -1, 0)


def fit(weight_ND: Float, importance_ND: Float, count: int, rounds: int = ROUNDS) -> BinaryCode:
    """The scales with the least sum of importance times squared error that alternation finds.

    Alternated are scales that may be any number; each round's are rounded, and of all rounded ones,
    those of the greedy start too, the best are kept. Importances are above 0, or 0 where a place is
    padding. Sets of zeros get scales of 0. No set depends on the others.
    """
    code = BinaryCode.of(greedy_scales(weight_ND, importance_ND, count))
    kept = _Best.of(greedy_scales(weight_ND, importance_ND, count, round_to_powers))
    kept.offer(np.arange(len(weight_ND)), kept.scale_Nq, weight_ND, importance_ND)
    # Sets whose errors stand still are left out, so later rounds have few.
    active_N = np.flatnonzero(kept.error_N > 0)
    code, known_N = code.of_sets(active_N), np.full(len(active_N), np.inf)
    for turn in range(rounds + 1):
        if active_N.size == 0:
            break
        left_ND, mass_ND = weight_ND[active_N], importance_ND[active_N]
        number_ND = code.nearest(left_ND)
        error_N = _errors(left_ND, mass_ND, code.values(number_ND))
        fitted = _LeastSquares.of(left_ND, mass_ND, code, number_ND)
        moves_N = (known_N - error_N > _STANDSTILL * error_N) & (turn < rounds)
        still_N = ~moves_N
        kept.offer(active_N[still_N], fitted.of_sets(still_N).rounded(),
                   left_ND[still_N], mass_ND[still_N])  # fmt: skip
        active_N, known_N = active_N[moves_N], error_N[moves_N]
        code = BinaryCode.of(_falling(fitted.of_sets(moves_N).scales(0)))
    return BinaryCode.of(kept.scale_Nq)


@dataclass(eq=False)
class _Best:
    """The scales with the least error that were offered, of each set."""

    scale_Nq: Float
    error_N: Float

    @classmethod
    def of(cls, scale_Nq: Float) -> _Best:
        return cls(scale_Nq, np.full(len(scale_Nq), np.inf))

    def offer(
        self, sets_N: NDArray[np.intp], scale_Nq: Float, weight_ND: Float, importance_ND: Float
    ) -> None:
        code = BinaryCode.of(scale_Nq)
        error_N = _errors(weight_ND, importance_ND, code.values(code.nearest(weight_ND)))
        better_N = error_N < self.error_N[sets_N]
        self.scale_Nq[sets_N[better_N]] = code.scale_Nq[better_N]
        self.error_N[sets_N[better_N]] = error_N[better_N]


def greedy_scales(
    weight_ND: Float,
    importance_ND: Float,
    count: int,
    rounded: Callable[[Float], Float] = lambda scale: scale,
) -> Float:
    """Scale after scale the mean size of what is left over, rounded; fp64 `[N, q]`, falling.

    Without rounding and with equal importances each lowers the squared error by `D * scale²`.
    """
    residue_ND = weight_ND.copy()
    total_N = np.maximum(importance_ND.sum(axis=1), np.finfo(np.float64).tiny)
    scale_Nq = np.empty((len(weight_ND), count))
    for place in range(count):
        mean_N = rounded((importance_ND * np.abs(residue_ND)).sum(axis=1) / total_N)
        scale_Nq[:, place] = mean_N
        residue_ND -= np.where(residue_ND > 0, mean_N[:, None], -mean_N[:, None])
    return -np.sort(-scale_Nq, axis=1)


def round_to_powers(scale: Float, terms: int = POWER_TERMS) -> Float:
    """The sum of at most `terms` powers of two, with signs, that greedy rounding gives.

    Each term is the power nearest to the rest by its logarithm, so the rest is at most
    `(sqrt(2) - 1)^terms` of the scale. Terms that fp16 could not hold beside the first are left
    out: the sum is an fp16 number, 0 below 2^-24.5 and 65504 = 2^16 - 2^5 at most.
    """
    scale = np.minimum(scale, _LARGEST)
    total, least = np.zeros_like(scale), np.full(scale.shape, float(_LEAST_EXPONENT))
    for term in range(terms):
        rest = scale - total
        with np.errstate(divide="ignore"):
            exponent = np.rint(np.log2(np.abs(rest)))
        if term == 0:
            least = np.maximum(least, exponent - _SPAN)
        power = np.where(exponent >= least, np.exp2(np.maximum(exponent, least)), 0.0)
        total += np.copysign(power, rest)
    return np.minimum(total, _LARGEST)


def _errors(weight_ND: Float, importance_ND: Float, value_ND: Float) -> Float:
    error_N: Float = (importance_ND * np.square(weight_ND - value_ND)).sum(axis=1)
    return error_N


def _falling(scale_Nq: Float) -> Float:
    """Scales without signs, which belong to the planes, the largest first."""
    return -np.sort(-np.abs(scale_Nq), axis=1)


@dataclass(frozen=True, eq=False)
class _LeastSquares:
    """What scales have to solve, with the signs as they are: `gram · scale = target`."""

    gram_Nqq: Float
    target_Nq: Float

    @classmethod
    def of(
        cls, weight_ND: Float, importance_ND: Float, code: BinaryCode, number_ND: NDArray[np.intp]
    ) -> _LeastSquares:
        """With the signs of sums of these numbers."""
        sets, levels = code.sums_NL.shape
        place_ND = number_ND + levels * np.arange(sets)[:, None]
        mass_NL, moment_NL = (
            np.bincount(place_ND.ravel(), value_ND.ravel(), sets * levels).reshape(sets, levels)
            for value_ND in (importance_ND, importance_ND * weight_ND)
        )
        sign_NLq = np.where(code.signs_NLq, 1.0, -1.0)
        gram_Nqq: Float = np.einsum("nlq,nl,nlr->nqr", sign_NLq, mass_NL, sign_NLq)
        target_Nq = np.einsum("nlq,nl->nq", sign_NLq, moment_NL)
        # The ridge pulls to the scales there are: planes that are always equal stay as they were.
        ridge_N1 = _RIDGE * np.trace(gram_Nqq, axis1=1, axis2=2)[:, None] + 1e-300
        gram_Nqq = gram_Nqq + ridge_N1[:, :, None] * np.eye(sign_NLq.shape[2])
        return cls(gram_Nqq, target_Nq + ridge_N1 * code.scale_Nq)

    def of_sets(self, sets: NDArray[np.bool_]) -> _LeastSquares:
        """Of these sets alone."""
        return _LeastSquares(self.gram_Nqq[sets], self.target_Nq[sets])

    def scales(self, first: int, known_Nq: Float | None = None) -> Float:
        """The best scales from number `first` on, the ones before being known; any sign."""
        target_Nq: NDArray[np.floating] = self.target_Nq[:, first:]
        if known_Nq is not None:
            known_Nq1 = known_Nq[:, :first, None]
            target_Nq = target_Nq - (self.gram_Nqq[:, first:, :first] @ known_Nq1)[:, :, 0]
        gram_Nqq = self.gram_Nqq[:, first:, first:]
        solution_Nq: Float = np.linalg.solve(gram_Nqq, target_Nq[:, :, None])[:, :, 0]
        return solution_Nq

    def rounded(self) -> Float:
        """Sums of powers of two, falling: one is rounded, those behind make up for it."""
        rounded_Nq = np.zeros_like(self.target_Nq)
        for place in range(rounded_Nq.shape[1]):
            scale_N = self.scales(place, rounded_Nq)[:, 0]
            rounded_Nq[:, place] = np.copysign(round_to_powers(np.abs(scale_N)), scale_N)
        return _falling(rounded_Nq)
