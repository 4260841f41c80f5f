"""How long rounding on calibration text will take here, from a few seconds of its parts.

Shape suffixes: B sequences, T tokens, D hidden size, O rows, I columns.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np
import torch

from pliant.bits import ErrorFeedback, UniformCodec
from pliant.calibrate import (
    SHARED_INPUTS,
    ReconstructionOptions,
    random_block,
    reconstruction_seconds,
)
from pliant.recipes.encoding import Rounding
from pliant.spec import BLOCK_MATRICES, ModelSpec

#: Rows and columns of the matrices that are rounded to see how long it takes: enough rows that the
#: steps in Python count no more than in large matrices.
_ROWS, _FEW_COLUMNS, _MANY_COLUMNS = 256, 64, 320
#: Columns of the moment that is factorized.
_FACTORIZED = 640
#: Models with fewer weights in their blocks are not worth timing: theirs takes seconds.
_SMALL, _SMALL_SECONDS = 2**20, 4e-6
#: How often each part is run.
_RUNS = 3
#: Sequences of the block that is run.
_SEQUENCES = 2


def rounding_seconds(
    spec: ModelSpec, rounding: Rounding, sequences: int, length: int, planes: int
) -> float:
    """Seconds of error feedback, and of learning blocks where that is asked for; 0 for nearest."""
    if rounding == "nearest":
        return 0.0
    seconds = feedback_seconds(spec, sequences, length, planes)
    if rounding == "reconstruct":
        options = ReconstructionOptions()
        seconds += reconstruction_seconds(spec, sequences, length, planes, options)
    return seconds


def feedback_seconds(spec: ModelSpec, sequences: int, length: int, planes: int) -> float:
    """Seconds of moments, factors and sweeps over all blocks, linear in the number of blocks.

    A sweep over a matrix [O, I] takes O I (a + b I), a factor c I^3: a, b and c are timed on small
    matrices, the forward pass on a block of the model's own shape and random weights. Small models
    are not timed.
    """
    weights = spec.num_blocks * spec.block_weights(spec.num_groups, spec.ffn_size)
    if weights < _SMALL:
        return _SMALL_SECONDS * weights
    a, b = _sweep_costs(planes)
    shapes = {name: spec.matrix_shape(name, spec.num_groups, spec.ffn_size)
              for name in BLOCK_MATRICES}  # fmt: skip
    sweeps = sum(rows * columns * (a + b * columns) for rows, columns in shapes.values())
    factors = sum(shapes[name][1] ** 3 for name in SHARED_INPUTS) * _factor_cost()
    forward = _block_seconds(spec, length) * sequences / _SEQUENCES
    return spec.num_blocks * (sweeps + factors + forward)


def _sweep_costs(planes: int) -> tuple[float, float]:
    """Seconds a weight takes, and what each column of its matrix adds to that."""
    codec, generator = UniformCodec(planes), np.random.default_rng(0)

    def per_weight(columns: int) -> float:
        weight_OI = generator.standard_normal((_ROWS, columns), np.float32)
        feedback = ErrorFeedback(np.eye(columns), np.ones(columns), 0.01)
        taken = _seconds(lambda: codec.encode_compensated(weight_OI, feedback))
        return taken / weight_OI.size

    few, many = per_weight(_FEW_COLUMNS), per_weight(_MANY_COLUMNS)
    slope = max(many - few, 0.0) / (_MANY_COLUMNS - _FEW_COLUMNS)
    return max(few - slope * _FEW_COLUMNS, 0.0), slope


def _factor_cost() -> float:
    """Seconds of factorizing a moment over the cube of its columns."""
    moment_II = np.eye(_FACTORIZED) + 0.5
    return _seconds(lambda: ErrorFeedback.of(moment_II)) / _FACTORIZED**3


def _block_seconds(spec: ModelSpec, length: int) -> float:
    """Seconds of a few sequences through one block, their moments taken."""
    generator = torch.Generator().manual_seed(0)
    model = random_block(spec, generator)
    hidden_BTD = torch.randn(_SEQUENCES, length, spec.hidden_size, generator=generator)

    def observe(name: str, inputs_BTI: torch.Tensor) -> None:
        wide_NI = inputs_BTI.flatten(0, 1).double()
        wide_NI.T @ wide_NI

    with torch.no_grad():
        return _seconds(lambda: model.block(0, hidden_BTD, observe=observe))


def _seconds(work: Callable[[], object]) -> float:
    """The fastest of some runs: what else a machine does only makes them slower."""
    taken = math.inf
    for _ in range(_RUNS):
        started = time.perf_counter()
        work()
        taken = min(taken, time.perf_counter() - started)
    return taken
