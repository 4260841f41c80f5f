"""`Transfer`: a device foreseen from a handful of measurements made on it.

The time of a step is fitted as a multiple of its arithmetic, of its bytes, of its operators (which
are launched one by one), and a constant, none negative: the least squares that learned predictors
such as HELP (arXiv 2106.08630) have to beat. How they compare: docs/how_it_works/costs.md.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from pliant.costs.graph import Graph
from pliant.costs.least_squares import relative_fit
from pliant.errors import UsageError

#: Fewer measurements than terms tell nothing of the error.
LEAST_SAMPLES = 4
_MOST_SECONDS = 1e5


class Transfer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Seconds per operation, byte, operator and step; the error is of leaving one out each time."""

    operation_seconds: float
    byte_seconds: float
    step_seconds: float
    error: float
    samples: int
    operator_seconds: float = 0.0

    def __post_init__(self) -> None:
        terms = (
            self.operation_seconds, self.byte_seconds, self.operator_seconds, self.step_seconds
        )  # fmt: skip
        if not all(0 <= term < _MOST_SECONDS for term in terms) or not any(terms):
            raise ValueError("the seconds of a transfer are 0 or more, one of them above 0")
        if self.samples < LEAST_SAMPLES or not self.error >= 0:
            raise ValueError("a transfer has 4 samples or more and an error of 0 or more")


def fit_transfer(graphs: Sequence[Graph | Sequence[Graph]], seconds: Sequence[float]) -> Transfer:
    """The transfer that fits steps to the `seconds` they took on a device.

    Several graphs are steps that were timed together, such as the chunks of a prompt. Raises
    `UsageError` for fewer than 4 of them, or times that are not above 0.
    """
    if len(graphs) != len(seconds) or len(graphs) < LEAST_SAMPLES:
        raise UsageError(
            f"{len(seconds)} measurements of {len(graphs)} steps were given; a device needs "
            f"{LEAST_SAMPLES} at least, 8 to 12 of different sizes are better."
        )
    if not all(second > 0 for second in seconds):
        raise UsageError("A measured time is not above 0 s; give seconds of each step.")
    sizes_NT = np.array([_together(item) for item in graphs])
    seconds_N = np.array(seconds, np.float64)
    x_T = relative_fit(sizes_NT, seconds_N)
    return Transfer(
        operation_seconds=float(x_T[0]), byte_seconds=float(x_T[1]), step_seconds=float(x_T[3]),
        operator_seconds=float(x_T[2]), error=_left_out_error(sizes_NT, seconds_N),
        samples=len(seconds),
    )  # fmt: skip


def transferred_seconds(graph: Graph, transfer: Transfer) -> float:
    """Seconds of a step by a transfer."""
    operations, num_bytes, operators, step = _sizes(graph)
    return (
        operations * transfer.operation_seconds
        + num_bytes * transfer.byte_seconds
        + operators * transfer.operator_seconds
        + step * transfer.step_seconds
    )


def _together(graphs: Graph | Sequence[Graph]) -> NDArray[np.float64]:
    every = [graphs] if isinstance(graphs, Graph) else graphs
    sizes_T: NDArray[np.float64] = np.sum([_sizes(graph) for graph in every], axis=0)
    return sizes_T


def _sizes(graph: Graph) -> tuple[float, float, float, float]:
    """Operations, bytes, operators launched, and the step itself."""
    operators = sum(item.count for item in graph.operators)
    return float(graph.operations), float(graph.memory_bytes), float(operators), 1.0


def _left_out_error(sizes_NT: NDArray[np.float64], seconds_N: NDArray[np.float64]) -> float:
    """Median absolute relative error of each sample by a fit to the others."""
    errors = []
    for place in range(len(seconds_N)):
        kept = np.arange(len(seconds_N)) != place
        x_T = relative_fit(sizes_NT[kept], seconds_N[kept])
        errors.append(abs(float(sizes_NT[place] @ x_T) / float(seconds_N[place]) - 1.0))
    return float(np.median(errors))
