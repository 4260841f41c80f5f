"""Which matrix reads how many planes: bits put where they save most loss for their bytes.

Every matrix has options, each with its planes, its bytes and what it costs in loss; one of each is
taken so that the sum of costs is least within a budget: a multiple-choice knapsack, solved exactly
by dynamic programming over bytes. Two rules of the literature stand beside it for comparison:
ranking matrices and cutting the rank in two (ShiftAddLLM, arXiv 2406.05981), and giving blocks
above the mean sensitivity more (LUC of Edge-LLM, arXiv 2406.15758).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from pliant.errors import DoesNotFitError

#: Cells of the table. Bytes are multiples of 128, and of far more in large models; where
#: that makes more cells, bytes are rounded up to a coarser unit: a plan may then waste up to
#: matrices / cells of the budget (0.3 % with 200 matrices), and never passes it.
_MOST_CELLS = 1 << 16


class Option(msgspec.Struct, frozen=True):
    """One way to store a matrix: planes, bytes, and its cost in loss (any additive unit)."""

    planes: int
    num_bytes: int
    cost: float


Options = Mapping[str, Sequence[Option]]
Planes = dict[str, int]


def allocate(options: Options, budget_bytes: int) -> Planes:
    """The planes of each matrix with the least total cost within `budget_bytes`.

    Costs that are not finite are never taken. `DoesNotFitError`, naming the least bytes, where
    nothing fits.
    """
    usable = {
        name: sorted(
            (option for option in offered if math.isfinite(option.cost)),
            key=lambda option: (option.num_bytes, option.cost),
        )
        for name, offered in options.items()
    }
    least = sum(min(option.num_bytes for option in offered) for offered in options.values())
    if not all(usable.values()) or _bytes(usable, 0) > budget_bytes:
        raise DoesNotFitError(
            f"{budget_bytes} bytes for weights are too few; the matrices need {least} at least."
        )
    # Only what an option takes beyond the smallest of its matrix is a choice.
    room = min(budget_bytes, _bytes(usable, -1)) - _bytes(usable, 0)
    unit = _unit(usable, room)
    best_C = np.zeros(room // unit + 1)
    taken: list[NDArray[np.int8]] = []
    for offered in usable.values():
        best_C, choice_C = _with_matrix(best_C, offered, unit)
        taken.append(choice_C)
    cell = len(best_C) - 1
    planes: Planes = {}
    for (name, offered), choice_C in zip(reversed(usable.items()), reversed(taken), strict=True):
        option = offered[choice_C[cell]]
        planes[name] = option.planes
        cell -= _cells(option, offered, unit)
    return {name: planes[name] for name in options}


def _bytes(usable: Mapping[str, Sequence[Option]], place: int) -> int:
    return sum(offered[place].num_bytes for offered in usable.values())


def _unit(usable: Mapping[str, Sequence[Option]], room: int) -> int:
    """Bytes of a cell: what divides all choices, or more where that makes too many cells."""
    steps = [
        option.num_bytes - offered[0].num_bytes for offered in usable.values() for option in offered
    ]
    return max(math.gcd(*steps) or 1, -(-room // _MOST_CELLS))


def _cells(option: Option, offered: Sequence[Option], unit: int) -> int:
    return -(-(option.num_bytes - offered[0].num_bytes) // unit)


def _with_matrix(
    best_C: NDArray[np.float64], offered: Sequence[Option], unit: int
) -> tuple[NDArray[np.float64], NDArray[np.int8]]:
    """The least cost within each number of cells with one matrix more, and its option there."""
    total_C = np.full(len(best_C), np.inf)
    choice_C = np.zeros(len(best_C), np.int8)
    for place, option in enumerate(offered):
        shift = _cells(option, offered, unit)
        if shift >= len(best_C):
            continue
        tried_C = best_C[: len(best_C) - shift] + option.cost
        is_better_C = tried_C < total_C[shift:]
        total_C[shift:][is_better_C] = tried_C[is_better_C]
        choice_C[shift:][is_better_C] = place
    return total_C, choice_C


def rank_and_cut(options: Options, budget_bytes: int) -> Planes:
    """ShiftAddLLM's rule: two neighbouring plane counts, the more for the most sensitive matrices.

    Matrices are ranked by their cost at the fewer planes, whatever their size. The two counts are
    those between which the budget lies.
    """
    scores = {name: {option.planes: option.cost for option in found}
              for name, found in options.items()}  # fmt: skip
    return _two_counts(
        options, budget_bytes, lambda low: sorted(scores, key=lambda name: -scores[name][low]),
        lambda name: name,
    )  # fmt: skip


def sensitive_blocks(options: Options, budget_bytes: int) -> Planes:
    """Edge-LLM's rule: blocks above the mean sensitivity get more planes, as far as bytes go.

    A block's sensitivity is the sum of its matrices' costs at the fewer planes; what lies outside
    all blocks counts as a block. The paper doubles bits; here the counts are neighbours, so that
    the budget can be kept.
    """

    def unit_of(name: str) -> str:
        return ".".join(name.split(".")[:2])

    def ranked(low: int) -> list[str]:
        total: dict[str, float] = {}
        for name, found in options.items():
            cost = next(option.cost for option in found if option.planes == low)
            total[unit_of(name)] = total.get(unit_of(name), 0.0) + cost
        mean = sum(total.values()) / len(total)
        order = sorted(total, key=lambda unit: -total[unit])
        return [unit for unit in order if total[unit] > mean]

    return _two_counts(options, budget_bytes, ranked, unit_of)


def _two_counts(
    options: Options,
    budget_bytes: int,
    ranked: Callable[[int], list[str]],
    unit_of: Callable[[str], str],
) -> Planes:
    """All matrices at one count, and of the ranked units as many as fit at the next."""
    size = {name: {o.planes: o.num_bytes for o in found} for name, found in options.items()}
    counts = sorted(set.intersection(*(set(sizes) for sizes in size.values())))
    fitting = [n for n in counts if sum(sizes[n] for sizes in size.values()) <= budget_bytes]
    if not fitting:
        least = sum(sizes[counts[0]] for sizes in size.values())
        raise DoesNotFitError(
            f"{budget_bytes} bytes for weights are too few; the matrices need {least} at least."
        )
    low = fitting[-1]
    planes = dict.fromkeys(options, low)
    above = [count for count in counts if count > low]
    left = budget_bytes - sum(sizes[low] for sizes in size.values())
    for unit in ranked(low) if above else []:
        members = [name for name in options if unit_of(name) == unit]
        more = sum(size[name][above[0]] - size[name][low] for name in members)
        if more <= left:
            left -= more
            planes |= dict.fromkeys(members, above[0])
    return planes
