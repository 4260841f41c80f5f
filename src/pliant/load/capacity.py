"""The largest rate of requests a server sustains; pure, takes `is_feasible`."""

from __future__ import annotations

from collections.abc import Callable

from pliant.errors import UsageError

_MAX_RUNS = 20
#: Rates below this part of the guess are not tried: at a rate near 0 a run takes for ever.
_LEAST_PART = 64


def find_capacity(
    is_feasible: Callable[[float], bool], guess: float, tolerance: float = 0.05
) -> float:
    """The largest rate found feasible, within `tolerance` of one that is not; 0 if none was,
    down to a 64th of the guess.

    The published search: bisection of [0, 2 guess], the upper end doubling while rates near it
    hold, until both ends are close or 20 runs are made.
    """
    if guess <= 0 or not 0 < tolerance < 1:
        raise UsageError(f"A search from {guess:g} to within {tolerance:g} makes no sense.")
    low, high, infeasible = 0.0, 2 * guess, float("inf")
    rate = guess
    for _ in range(_MAX_RUNS):
        if is_feasible(rate):
            low = rate
            if rate > 0.8 * high:
                high = min(2 * high, infeasible)
        else:
            high = infeasible = min(rate, infeasible)
        if high - low <= tolerance * high or high < guess / _LEAST_PART:
            break
        rate = (low + high) / 2
    return low
