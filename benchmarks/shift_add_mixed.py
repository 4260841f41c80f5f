"""Which matrix should have which number of planes of signs? Loss at 2.2 and 2.7 on average.

`python benchmarks/shift_add_mixed.py` writes `benchmarks/results/shift_add_mixed.json`; the demo
model takes a minute. Every matrix is rounded with error feedback at 1, 2, 3 and 4 planes, each a
code of its own, and the numbers are chosen within the same bytes by what a matrix costs:
ShiftAddLLM's score; the error of its output, or that over the size of the output; the KL of the
model with it alone rounded, as `pliant build --average-planes` does. Matrices are ranked and the
rank is cut, or the sum of costs is made least by an exact knapsack. Beside them the uniform codec,
whose prefixes are all good, with the numbers of planes that `fit` would choose. Loss, windows and
seeds are those of `benchmarks/bits.py`; embedding and head stay dense. Shape suffixes: B sequences,
T tokens, O rows, I columns.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bits import ROOT, Reference, num_weights, witness
from bits_mixed import matrix_bytes
from pliant.bits import Codec, EncodedMatrix, ErrorFeedback, ShiftAddCodec, UniformCodec
from pliant.calibrate import (
    SHARED_INPUTS,
    MomentStream,
    decode_matrix,
    matrix_sensitivities,
    separate_sensitivities,
)
from pliant.models import Supernet
from pliant.search import Option, allocate, rank_and_cut
from shift_add import run, table

RESULTS = ROOT / "benchmarks" / "results" / "shift_add_mixed.json"
COUNTS = (1, 2, 3, 4)
AVERAGES = (2.2, 2.7)
#: Calibration windows that KL is measured on: of seeds that rounding never draws.
CHOICE_SEED = 1000
PUBLISHED, ABSOLUTE, RELATIVE, KL = "published score", "output error", "relative output error", "KL"

#: Encoded matrices by name and number of planes.
Stored = dict[str, dict[int, EncodedMatrix]]
Costs = Mapping[str, Mapping[int, float]]
Planes = Mapping[str, int]


def main() -> None:
    run(__doc__, RESULTS, measured, by_average)


def measured(folder: Path, seed: int) -> Iterator[dict[str, Any]]:
    """A row for each average and rule of one model."""
    supernet, calibration_BT, report_BT = witness(folder, seed)
    _, choices_BT, _ = witness(folder, CHOICE_SEED + seed)
    signs, uniform, rules = encoded(supernet, calibration_BT)
    reference = Reference(supernet, report_BT)
    rules[KL] = separate_sensitivities(supernet, choices_BT, ShiftAddCodec(), signs.__getitem__)
    plans = dealt(signs, rules, uniform, prefix_costs(supernet, choices_BT, uniform))
    count = num_weights(supernet, signs)
    for average, label, codec, stored, planes in plans:
        increase, divergence = reference.compare(rounded(supernet, codec, stored, planes))
        used = sum(matrix_bytes(stored[name][n], n) for name, n in planes.items())
        yield {"model": folder.name, "average": average, "method": label, "seed": seed,
               "bits": 8 * used / count, "dense": reference.loss, "increase": increase,
               "kl": divergence, "planes": planes}  # fmt: skip


def encoded(
    supernet: Supernet, calibration_BT: torch.Tensor
) -> tuple[Stored, Stored, dict[str, Costs]]:
    """Planes of signs for each number, uniform planes, and costs by what needs no model."""
    signs, uniform = Stored(), Stored()
    costs: dict[str, dict[str, dict[int, float]]] = {PUBLISHED: {}, ABSOLUTE: {}, RELATIVE: {}}
    stream = MomentStream(supernet, calibration_BT)
    for block in range(supernet.spec.num_blocks):
        for shared, moment_II in stream.advance(block).items():
            feedback = ErrorFeedback.of(moment_II)
            for name in (f"blocks.{block}.{matrix}" for matrix in SHARED_INPUTS[shared]):
                weight_OI = supernet.weights[name].numpy()
                signs[name] = {
                    planes: ShiftAddCodec(planes).encode_compensated(weight_OI, feedback)
                    for planes in COUNTS
                }
                whole = UniformCodec().encode_compensated(weight_OI, feedback)
                uniform[name] = dict.fromkeys(range(1, 9), whole)
                costs[PUBLISHED][name] = dict.fromkeys(COUNTS, score(weight_OI, feedback))
                costs[ABSOLUTE][name] = {
                    planes: energy(
                        decode_matrix(ShiftAddCodec(), found, planes) - weight_OI, moment_II
                    )
                    for planes, found in signs[name].items()
                }
                size = energy(weight_OI, moment_II)
                costs[RELATIVE][name] = {
                    n: cost / size for n, cost in costs[ABSOLUTE][name].items()
                }
    return signs, uniform, dict(costs)


def energy(weight_OI: np.ndarray, moment_II: np.ndarray) -> float:
    """Mean square of what a matrix puts out, summed over its rows."""
    wide_OI = weight_OI.astype(np.float64)
    return float(((wide_OI @ moment_II) * wide_OI).sum())


def score(weight_OI: np.ndarray, feedback: ErrorFeedback) -> float:
    """ShiftAddLLM's: the size of the weights by what an error of theirs costs, and their spread."""
    by_cost_OI = weight_OI / feedback.factor_II.diagonal()
    return float(np.linalg.norm(by_cost_OI) * by_cost_OI.std() ** 2)


def dealt(
    signs: Stored, rules: Mapping[str, Costs], uniform: Stored, prefixes: Costs
) -> Iterator[tuple[float, str, Codec, Stored, Planes]]:
    """The average, label, codec, matrices and numbers of planes of each row."""
    codec = ShiftAddCodec()
    for count in COUNTS[1:3]:
        yield count, f"shift-add, {count} planes", codec, signs, dict.fromkeys(signs, count)
    for average in AVERAGES:
        budget = budget_bytes(signs, average)
        for rule, costs in rules.items():
            cut = rank_and_cut(offered(signs, costs), budget)
            yield average, f"shift-add mixed {average}: {rule}, rank and cut", codec, signs, cut
            if rule != PUBLISHED:  # which says nothing of numbers of planes
                exact = allocate(offered(signs, costs), budget)
                label = f"shift-add mixed {average}: {rule}, knapsack"
                yield average, label, codec, signs, exact
        nested = allocate(offered(uniform, prefixes), budget)
        label = f"uniform mixed {average}: KL, knapsack"
        yield average, label, UniformCodec(), uniform, nested


def budget_bytes(stored: Stored, average: float) -> int:
    """Bytes of scales, and of so many planes on average."""
    matrices = [found[1] for found in stored.values()]
    scales = sum(matrix.scales.nbytes for matrix in matrices)
    return scales + int(average * sum(matrix.planes[0].nbytes for matrix in matrices))


def offered(stored: Stored, costs: Costs) -> dict[str, list[Option]]:
    """What an allocation chooses among."""
    return {
        name: [Option(planes, matrix_bytes(found[planes], planes), cost)
               for planes, cost in costs[name].items()]
        for name, found in stored.items()
    }  # fmt: skip


def prefix_costs(supernet: Supernet, tokens_BT: torch.Tensor, uniform: Stored) -> Costs:
    """KL by the prefixes of the uniform codec, as `pliant build` measures it for `fit`."""
    codec = UniformCodec()
    whole = {name: found[1] for name, found in uniform.items()} | {
        name: codec.encode(supernet.weights[name].numpy(), name)
        for name in ("embedding", "head") if name in supernet.weights
    }  # fmt: skip
    return matrix_sensitivities(supernet, tokens_BT, codec, whole.__getitem__)


def rounded(supernet: Supernet, codec: Codec, stored: Stored, planes: Planes) -> Supernet:
    """The model with each matrix of `planes` as so many planes stand for."""
    weights = {
        name: torch.from_numpy(decode_matrix(codec, stored[name][count], count))
        for name, count in planes.items()
    }
    return Supernet(supernet.spec, {**supernet.weights, **weights}, supernet.shape)


def by_average(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The table of `shift_add.py`, the rows of one average together."""
    parts: dict[tuple[str, float], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        parts[row["model"], row["average"]].append(row)
    tables = [table(parts[key]) for key in sorted(parts)]
    return {**tables[0], "rows": [cells for part in tables for cells in part["rows"]]}


if __name__ == "__main__":
    main()
