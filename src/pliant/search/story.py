"""The search: predict all candidates, verify the best few by real evaluation, choose."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import msgspec

from pliant.errors import DoesNotFitError, QualityFloorError
from pliant.search.budget import Budget
from pliant.search.candidate import Candidate
from pliant.search.frontier import frontier
from pliant.subnet import Subnet


class Scored(msgspec.Struct, frozen=True, kw_only=True):
    """A candidate with its measured loss, in the unit of the score function."""

    candidate: Candidate
    loss: float


class Search(msgspec.Struct, frozen=True, kw_only=True):
    """What a search found.

    `frontier` holds the predicted non-dominated candidates of any size, `verified` the measured
    ones best first, `chosen` the first of them, and `baseline` the dense shape at the bits that
    fit, measured too (None where no dense candidate fits).
    """

    chosen: Scored
    verified: tuple[Scored, ...]
    baseline: Scored | None
    frontier: tuple[Candidate, ...]


def search(
    offered: Sequence[Candidate],
    score: Callable[[Candidate], float],
    budget: Budget,
    verify: int = 3,
    dense_loss: float | None = None,
    measured_losses: Mapping[Subnet, float] | None = None,
) -> Search:
    """The best measured of the `verify` best predicted candidates within `budget`.

    Those differ in more than their caches. Of `measured_losses`, known from before, the best that
    fits is a candidate too.

    The dense shape at the most bits that fit is measured beside them and wins where it is better:
    it is the honest baseline. `score` measures a candidate's loss; `dense_loss`, in the same unit,
    is what `budget.max_loss_increase` refers to. Raises `DoesNotFitError` where nothing fits, and
    `QualityFloorError` where the best measured loss is beyond the bound.
    """
    fitting = budget.fitting(offered)
    dense = next((candidate for candidate in fitting if candidate.is_dense), None)
    finalists = _first_distinct(fitting, verify)
    known = measured_losses or {}
    best = min(
        (candidate for candidate in fitting if candidate.subnet in known),
        key=lambda candidate: known[candidate.subnet],
        default=None,
    )
    finalists += [item for item in (dense, best) if item is not None and item not in finalists]
    finalists = list(dict.fromkeys(finalists))
    measured = [Scored(candidate=finalist, loss=score(finalist)) for finalist in finalists]
    verified = sorted(
        (found for found in measured if math.isfinite(found.loss)),
        key=lambda found: (found.loss, found.candidate.memory_bytes),
    )
    if not verified:
        raise DoesNotFitError(
            "Every candidate that fits proved too slow or has a loss that is not finite."
        )
    check_quality(verified[0], budget, dense_loss)
    return Search(
        chosen=verified[0],
        verified=tuple(verified),
        baseline=next((found for found in verified if found.candidate == dense), None),
        frontier=tuple(predicted_frontier(offered)),
    )


def _first_distinct(fitting: Sequence[Candidate], count: int) -> list[Candidate]:
    """The first `count` that are not one cut with another cache."""
    found: dict[Subnet, Candidate] = {}
    for candidate in fitting:
        if len(found) >= count:
            break
        found.setdefault(candidate.subnet.with_cache(16), candidate)
    return list(found.values())


def predicted_frontier(offered: Sequence[Candidate]) -> list[Candidate]:
    """The candidates that no other beats in both memory and predicted loss."""
    return frontier(offered, lambda item: item.memory_bytes, lambda item: item.predicted_loss)


def check_quality(best: Scored, budget: Budget, dense_loss: float | None) -> None:
    """Raise `QualityFloorError` where the measured loss is beyond what the budget allows."""
    if budget.max_loss_increase is None or dense_loss is None:
        return
    increase = best.loss / dense_loss - 1
    if increase > budget.max_loss_increase:
        raise QualityFloorError(
            f"The best subnet that fits, {best.candidate.address}, loses {increase:+.2%} and "
            f"{budget.max_loss_increase:+.2%} was allowed; give more memory or allow more loss."
        )
