"""Which matrix should get which planes? Loss at 2.2, 2.7 and 3.3 planes on average.

`python benchmarks/mixed_bits.py` writes `benchmarks/results/mixed-bits.json` and
`docs/images/mixed_bits.svg`. The demo model is rounded once for each calibration seed, embedding
and head included; sensitivities are measured on calibration windows that rounding did not see, and
losses on held-out text. `uniform` gives matrices drawn at random the next count until the bytes
are spent, the mean of several draws: what an average without a choice is. All have the same budget.
`--rounding reconstruct` takes a minute more for each seed.
Shape suffixes: B sequences, T tokens.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from bits import Reference, witness
from bits_mixed import matrix_bytes
from pliant.bits import EncodedMatrix, UniformCodec
from pliant.calibrate import decode_matrix, matrix_sensitivities, output_errors
from pliant.models import Supernet
from pliant.recipes.demo import demo_checkpoint
from pliant.recipes.encoding import ROUNDINGS, encoded_matrices
from pliant.search import Option, allocate, rank_and_cut, sensitive_blocks

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "mixed-bits.json"
PICTURE = ROOT / "docs" / "images" / "mixed_bits.svg"
AVERAGES = (2.2, 2.7, 3.3)
DRAWS = 4
#: Calibration windows that sensitivities are measured on: of seeds that rounding never draws.
CHOICE_SEED = 1000
CODEC = UniformCodec()
METHODS = {
    "uniform": "matrices at random",
    "sensitive blocks": "LUC of Edge-LLM",
    "rank and cut": "ShiftAddLLM",
    "knapsack, output error": "exact, Hessian proxy",
    "knapsack, KL": "exact, held-out KL",
}

Planes = Mapping[str, int]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounding", choices=ROUNDINGS, default="feedback")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--picture", type=Path, default=PICTURE)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        started = time.monotonic()
        rows += measured(seed, options.rounding)
        print(f"seed {seed}: {time.monotonic() - started:.0f} s", flush=True)
    summary = summarized(rows)
    results = {
        "model": demo_checkpoint().name, "rounding": options.rounding, "seeds": options.seeds,
        "table": table(summary), "summary": summary, "plans": plans(rows),
    }  # fmt: skip
    options.output.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=2) + b"\n")
    draw(summary, options.picture)


def measured(seed: int, rounding: Any) -> list[dict[str, Any]]:
    """A row for each average and method."""
    folder = demo_checkpoint()
    supernet, calibration_BT, report_BT = witness(folder, seed)
    _, choices_BT, _ = witness(folder, CHOICE_SEED + seed)
    names = [name for name, shape in supernet.spec.tensors().items() if len(shape) == 2]
    pairs = encoded_matrices(supernet, names, CODEC, rounding, calibration_BT, seed=seed)
    stored = {name: value for name, value in pairs if isinstance(value, EncodedMatrix)}
    by_loss = matrix_sensitivities(supernet, choices_BT, CODEC, stored.__getitem__)
    by_output = output_errors(supernet, choices_BT, CODEC, stored.__getitem__)
    # No input of the embedding has moments: its proxy is the error of its rows.
    by_output["embedding"] = row_errors(supernet, stored["embedding"], by_loss["embedding"])
    reference = Reference(supernet, report_BT)
    sizes = {name: matrix.rows * matrix.columns for name, matrix in stored.items()}
    rows = []
    for average in AVERAGES:
        budget = round(average * sum(sizes.values()) / 8) + sum(
            m.scales.nbytes for m in stored.values()
        )
        for method, many in dealt(stored, by_loss, by_output, budget, seed).items():
            found = [reference.compare(rounded(supernet, stored, planes)) for planes in many]
            increase, divergence = (statistics.fmean(part) for part in zip(*found, strict=True))
            rows.append(
                {"average": average, "method": method, "seed": seed, "dense": reference.loss,
                 "bits": 8 * used_bytes(stored, many[0]) / sum(sizes.values()),
                 "increase": increase, "kl": divergence, "planes": many[0]}
            )  # fmt: skip
            print(f"{average} {method}: +{increase / reference.loss:.2%}, KL {divergence:.4f}",
                  flush=True)  # fmt: skip
    return rows


def row_errors(
    supernet: Supernet, stored: EncodedMatrix, counts: Mapping[int, float]
) -> dict[int, float]:
    weight = supernet.weights["embedding"].numpy()
    return {
        count: float(np.square(decode_matrix(CODEC, stored, count) - weight).sum())
        / float(np.square(weight).sum())
        for count in counts
    }


def dealt(
    stored: Mapping[str, EncodedMatrix],
    by_loss: Mapping[str, Mapping[int, float]],
    by_output: Mapping[str, Mapping[int, float]],
    budget: int,
    seed: int,
) -> dict[str, list[Planes]]:
    """The plans of each method, all within the budget."""

    def offered(costs: Mapping[str, Mapping[int, float]]) -> dict[str, list[Option]]:
        return {
            name: [Option(planes, matrix_bytes(matrix, planes), cost)
                   for planes, cost in costs[name].items()]
            for name, matrix in stored.items()
        }  # fmt: skip

    draws: list[Planes] = []
    generator = random.Random(seed)
    for _ in range(DRAWS):
        luck = {name: generator.random() for name in stored}
        chance = {name: dict.fromkeys(by_loss[name], luck[name]) for name in stored}
        draws.append(rank_and_cut(offered(chance), budget))
    return {
        "uniform": draws,
        "sensitive blocks": [sensitive_blocks(offered(by_loss), budget)],
        "rank and cut": [rank_and_cut(offered(by_loss), budget)],
        "knapsack, output error": [allocate(offered(by_output), budget)],
        "knapsack, KL": [allocate(offered(by_loss), budget)],
    }


def used_bytes(stored: Mapping[str, EncodedMatrix], planes: Planes) -> int:
    return sum(matrix_bytes(matrix, planes[name]) for name, matrix in stored.items())


def rounded(supernet: Supernet, stored: Mapping[str, EncodedMatrix], planes: Planes) -> Supernet:
    weights = {
        name: torch.from_numpy(decode_matrix(CODEC, matrix, planes[name]))
        for name, matrix in stored.items()
    }
    return Supernet(supernet.spec, {**supernet.weights, **weights}, supernet.shape)


def summarized(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean over seeds, and half the range, of each average and method."""
    points: dict[tuple[float, str], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        points[row["average"], row["method"]].append(row)
    return [
        {"average": average, "method": method,
         **{key: statistics.fmean(row[key] for row in found)
            for key in ("dense", "bits", "increase", "kl")},
         "spread": (max(r["increase"] for r in found) - min(r["increase"] for r in found)) / 2}
        for (average, method), found in points.items()
    ]  # fmt: skip


def plans(rows: list[dict[str, Any]]) -> dict[str, Planes]:
    """What the knapsack chose with the first seed, by average."""
    return {str(row["average"]): row["planes"] for row in rows
            if row["method"] == "knapsack, KL" and row["seed"] == 0}  # fmt: skip


def table(summary: list[dict[str, Any]]) -> dict[str, Any]:
    """Loss relative to dense; methods as rows, averages as their order."""
    rows = [
        [f"{point['average']}", point["method"], METHODS[point["method"]], f"{point['bits']:.2f}",
         f"{point['increase'] / point['dense']:+.1%}",
         f"{point['spread'] / point['dense']:.1%}", f"{point['kl']:.4f}"]
        for point in summary
    ]  # fmt: skip
    columns = ["planes on average", "method", "is", "effective bits", "loss", "± seeds", "KL, nats"]
    return {"columns": columns, "align": "lllrrrr", "rows": rows}


def draw(summary: list[dict[str, Any]], path: Path) -> None:
    """KL of each method, bars grouped by average."""
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 3.6))
    width = 0.8 / len(METHODS)
    for place, method in enumerate(METHODS):
        points = [point for point in summary if point["method"] == method]
        axis.bar([number + place * width for number in range(len(points))],
                 [point["kl"] for point in points], width, label=method)  # fmt: skip
    axis.set_xticks([number + 0.4 - width / 2 for number in range(len(AVERAGES))],
                    [f"{average} planes" for average in AVERAGES])  # fmt: skip
    axis.set(
        ylabel="KL to dense, nats", yscale="log", title="The same bytes, dealt out differently"
    )
    axis.legend(fontsize=8)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
