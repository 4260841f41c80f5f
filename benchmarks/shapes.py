"""Does one tuning make every shape good? And does it matter how shapes are chosen?

`python benchmarks/shapes.py --budget short` works on `models/tale-750k` and writes
`benchmarks/results/shapes.json`. All rows see the same texts, in the order that their seed gives,
for the same number of steps of the same size; all are measured on the same windows of held-out text
that neither calibration nor tuning has seen. Rows:

- untuned: every shape as cut; depth chosen by each method at full width, width by each method at
  full depth;
- joint: one tuning for all shapes; the same without balancing, without distillation, and with
  depths and widths chosen at random; with the model before the tuning as the teacher of all shapes;
  the same of SMoL adapters alone, and of one LoRA that all shapes share, the weights as they were;
  of adapters that spare the full shape, which is then not run, two more random ones in its place;
- single: each of a few shapes tuned alone for as many steps, the dense model its teacher (the
  upper bound: one run for each shape) or the text alone;
- share: each of these shapes alone, with its share of the joint run's arithmetic.

Joint and single are compared three times. *At equal steps of the optimizer* a joint run takes as
many as one single run, so that a shape between the ends is seen in a tenth to a sixth of them. *At
equal steps per shape* (rows that end in "visits") it is so long that each shape between is seen in
as many steps as a single run of that shape takes. *At equal total compute*: share.

Rows "by" a method tune for all shapes those that another method of depth or width chooses; "finer"
samples halves of blocks and ranked widths too.

Every finished run is kept in the results: a benchmark that was stopped goes on, and `--minutes`
ends it after the run that passes them. `benchmarks/tables.py` makes the tables, this script the
pictures `docs/images/shapes_*.svg`. `--keep FOLDER` writes the tuned model of the long joint run,
seed 0, as a checkpoint for `benchmarks/search.py --checkpoint`, when it comes to that run.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from pliant.calibrate import find_depth_paths
from pliant.shape import WIDTH_METHODS, SubnetShape
from pliant.tune import named_shapes
from shapes_pictures import draw
from shapes_runs import DEPTH_METHODS, LONG, ROWS, Bench, Budget, Run, measured, prepare, runs
from shapes_tables import finer_table, gaps_table, methods_table, rows_table

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "shapes.json"
CORPUS = ROOT / "../shared/data/corpus"
BUDGETS = {
    "short": Budget(100, 1024, 3, 24, 16),
    "full": Budget(2000, 8192, 3, 80, 64),
}


def main() -> None:
    options = _parser().parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    began, budget = time.monotonic(), BUDGETS[options.budget]
    bench = prepare(budget, options.corpus, options.cache)
    results = begun(options.output, options.budget, bench)
    if "untuned" not in results:
        results["untuned"] = untuned(bench)
    if "finer" not in results["untuned"]:
        results["untuned"]["finer"] = bench.finer_losses(bench.supernet())
    store(results, options.output)
    for run in runs(budget.seeds):
        if run.key in results["runs"]:
            continue
        if time.monotonic() - began > 60 * options.minutes:
            break
        known = same_choices(bench, run, results["runs"])
        keep = options.keep if (run.row, run.seed) == (LONG, 0) else None
        results["runs"][run.key] = {**asdict(run), **(known or measured(bench, run, keep))}
        store(results, options.output)
        print(run.key, f"{results['runs'][run.key]['seconds']:.0f} s", flush=True)
    draw(results, ROOT / "docs" / "images")


def untuned(bench: Bench) -> dict[str, Any]:
    """Losses of cuts before any tuning: the grid, each depth method, each width method."""
    model = bench.supernet()
    space = bench.space()
    grid = {named.name: bench.bits_per_byte(model, named.shape) for named in named_shapes(space)}
    paths = find_depth_paths(model, bench.choices_BT, DEPTH_METHODS, 1)
    known: dict[tuple[int, ...], float] = {}
    depth: dict[str, dict[str, float]] = {}
    for method, path in paths.items():
        for count, blocks in path.blocks.items():
            if blocks not in known:
                shape = SubnetShape.uniform(model.spec, blocks, 1.0)
                known[blocks] = bench.bits_per_byte(model, shape)
            depth.setdefault(method, {})[str(count)] = known[blocks]
    everything = tuple(range(model.spec.num_blocks))
    width: dict[str, dict[str, float]] = {}
    for method in WIDTH_METHODS:
        ordered = bench.supernet(method)
        width[method] = {
            f"{ratio:g}": bench.bits_per_byte(
                ordered, SubnetShape.uniform(model.spec, everything, ratio)
            )
            for ratio in space.widths
        }
    return {"grid": grid, "depth": depth, "width": width}


def same_choices(bench: Bench, run: Run, done: dict[str, Any]) -> dict[str, Any] | None:
    """What a run would give, from one whose depth method chose the same blocks."""
    row = ROWS[run.row]
    if row.depth in ("amoeba", "random"):
        return None
    for other, as_other in ROWS.items():
        found = done.get(Run(other, run.seed).key)
        alike = (as_other.options, as_other.width, as_other.steps, as_other.visits) == (
            row.options, row.width, row.steps, row.visits
        )  # fmt: skip
        same = alike and not as_other.finer and not as_other.alone
        if found and same and bench.path(as_other.depth).blocks == bench.path(row.depth).blocks:
            return {name: value for name, value in found.items() if name not in asdict(run)}
    return None


def begun(path: Path, budget: str, bench: Bench) -> dict[str, Any]:
    """Results of a stopped benchmark under the same conditions, or those of a new one."""
    conditions = {
        "model": bench.checkpoint.folder.name,
        "budget": budget,
        **asdict(bench.budget),
        "heldout_tokens": bench.heldout_BT.numel(),
        "tokens_per_run": bench.budget.steps * bench.budget.batch_tokens,
        "texts": [source.name for source in bench.sources],
    }
    if path.exists():
        stored: dict[str, Any] = json.loads(path.read_text())
        if stored["conditions"] == conditions:
            return stored
    return {"conditions": conditions, "runs": {}}


def store(results: dict[str, Any], path: Path) -> None:
    """Write the results with the tables made from them."""
    results["table"] = rows_table(results)
    results["tables"] = {
        "gaps": gaps_table(results),
        "methods": methods_table(results),
        "finer": finer_table(results),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget", choices=sorted(BUDGETS), default="short")
    parser.add_argument("--minutes", type=float, default=15, help="start no run after this long")
    parser.add_argument("--corpus", type=Path, default=CORPUS, help="folder of training texts")
    parser.add_argument("--cache", type=Path, default=ROOT / ".demo" / "shapes")
    parser.add_argument("--keep", type=Path, help="folder for the tuned model of the long run")
    parser.add_argument("--output", type=Path, default=RESULTS)
    return parser


if __name__ == "__main__":
    main()
