"""The fluidity-index: which part of a text's deadlines its tokens met.

Metron (Agrawal et al., arXiv 2407.07000, later named Etalon). Each token has a deadline; one that
is early leaves slack to those behind it; one that is late misses as many deadlines as whole
periods have passed, and deadlines begin anew from where it came. So a stall counts by its length
and its place, which neither a mean nor a percentile of inter-token times shows.

Where this deviates from the published program: times are integer nanoseconds, because the floor of
a quotient of floats is off by one at whole periods (0.75 / 0.05 gives 14); the smallest period is
found by bisection to the nanosecond instead of to 0.1 ms; the prefill deadline is a quadratic with
coefficients that are not negative instead of a random forest, which cannot say anything about
prompts longer than those it saw; a request that failed has missed all its deadlines; percentiles
are values of the sample (the nearest rank) and not between two of them. As there, tokens are timed
where the client receives them, and those of one piece of a stream have one time.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from pliant.errors import DataError, UsageError

#: Numerator and denominator of the share of deadlines that a fluid text may miss: one in ten.
_MAX_MISSES = (1, 10)


class Deadlines(msgspec.Struct, frozen=True):
    """Nanoseconds until the first token, and from one to the next; the published defaults.

    `UsageError` unless the first is 0 or more and the second at least 1.
    """

    first: int = 100_000_000
    between: int = 50_000_000

    def __post_init__(self) -> None:
        if self.first < 0 or self.between < 1:
            raise UsageError(
                f"Deadlines of {self.first} and {self.between} ns make no sense; the first is 0 "
                "or more and those between tokens at least 1."
            )


class Fluidity(msgspec.Struct, frozen=True):
    """Deadlines of one text, and those of them that were missed."""

    deadlines: int
    missed: int

    @property
    def index(self) -> float:
        """The share that was met, from 0 to 1."""
        return 1 - self.missed / self.deadlines

    @property
    def is_fluid(self) -> bool:
        """Whether at most one in ten was missed."""
        return self.missed * _MAX_MISSES[1] <= self.deadlines * _MAX_MISSES[0]


def fluidity(gaps: Sequence[int], deadlines: Deadlines, *, skip_first: bool = False) -> Fluidity:
    """The deadlines that a text met.

    `gaps` are integer nanoseconds: from the request's arrival to its first token, then from each
    token to the next; `skip_first` leaves the first one out of account. `DataError` where there is
    no token to judge or a gap is negative.
    """
    if len(gaps) <= skip_first or min(gaps) < 0:
        raise DataError(f"{len(gaps)} gaps are no text to judge; give times that never fall.")
    slack = missed = total = 0
    for place, gap in enumerate(gaps):
        is_first = place == 0
        if is_first and skip_first:
            continue
        deadline = deadlines.first if is_first else deadlines.between
        late = gap - slack - deadline
        if late <= 0:
            slack = -late
            total += 1
            continue
        # The deadline itself, and every further period that passed before the token came.
        periods = late // deadlines.between + 1
        missed += periods
        total += periods
        slack = 0
    return Fluidity(total, missed)


def sustainable_gap(gaps: Sequence[int]) -> int:
    """The shortest time between tokens, in nanoseconds, at which a text would be fluid.

    The first token is not judged (it has a deadline of its own kind) and leaves no slack. The
    longest gap is always long enough. `DataError` where there are no two tokens.
    """
    if len(gaps) < 2:
        raise DataError(f"A text of {len(gaps)} tokens has no time between tokens.")

    def is_fluid(between: int) -> bool:
        return fluidity(gaps, Deadlines(0, between), skip_first=True).is_fluid

    low, high = 0, max(max(gaps[1:]), 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_fluid(middle) else (middle, high)
    return high


class PrefillCurve(msgspec.Struct, frozen=True):
    """Nanoseconds to the first token of S tokens: `constant + linear S + square S^2`."""

    constant: float
    linear: float
    square: float

    def __call__(self, tokens: int) -> int:
        """Nanoseconds for a prompt of `tokens` tokens."""
        return round(self.constant + self.linear * tokens + self.square * tokens * tokens)


def fit_prefill_curve(lengths: Sequence[int], nanoseconds: Sequence[int]) -> PrefillCurve:
    """The curve with coefficients of 0 or more that is nearest to measured first tokens.

    Least squares over all choices of coefficients that may be 0, relative to each time, so that
    short prompts count as much as long ones. `DataError` without a measurement.
    """
    import numpy as np

    if not lengths or len(lengths) != len(nanoseconds) or min(nanoseconds) <= 0:
        raise DataError(
            f"{len(lengths)} prompts with {len(nanoseconds)} times cannot be fitted; give a "
            "positive time for each of at least one prompt."
        )
    sizes, times = np.asarray(lengths, np.float64), np.asarray(nanoseconds, np.float64)
    terms = np.stack([np.ones_like(sizes), sizes, sizes**2], 1) / times[:, None]
    best: tuple[float, list[float]] | None = None
    for chosen in ([0, 1, 2], [0, 1], [0, 2], [1, 2], [0], [1], [2]):
        # Columns of one size, because a constant and a square differ by many powers of ten.
        scale = np.linalg.norm(terms[:, chosen], axis=0)
        found, *_ = np.linalg.lstsq(terms[:, chosen] / scale, np.ones_like(times), rcond=None)
        if (found >= 0).all():
            error = float(((terms[:, chosen] / scale) @ found - 1).__pow__(2).sum())
            if best is None or error < best[0] - 1e-12:
                coefficients = np.zeros(3)
                coefficients[chosen] = found / scale
                best = error, coefficients.tolist()
    assert best is not None, "a constant alone is always possible"
    return PrefillCurve(*best[1])
