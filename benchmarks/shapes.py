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
- single: each of a few shapes tuned alone for as many steps, the dense model its teacher (the
  upper bound: one run for each shape) or the text alone;
- share: each of these shapes alone, with its share of the joint run's arithmetic.

Every finished run is kept in the results: a benchmark that was stopped goes on, and `--minutes`
ends it after the run that passes them. `benchmarks/tables.py` makes the table, this script the
pictures `docs/images/shapes_*.svg`.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pliant.calibrate import find_depth_paths, find_width_orders, mean_loss
from pliant.data import (
    Mixture,
    Source,
    TokenArray,
    encode_corpus,
    read_documents,
    token_windows,
)
from pliant.models import Checkpoint, ShapeAdapters, Supernet
from pliant.recipes.demo import demo_checkpoint
from pliant.runtime import Tokenizer
from pliant.shape import (
    WIDTH_METHODS,
    DepthMethod,
    ShapeSpace,
    SubnetShape,
    WidthMethod,
    WidthOrders,
)
from pliant.tune import NamedShape, Sandwich, ShapeTuner, TuneOptions, named_shapes, only
from shapes_pictures import draw

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "shapes.json"
CORPUS = ROOT / "../shared/data/corpus"
#: Texts, their share of the demo model's own training mixture, documents taken, characters of each.
TEXTS = (("children_train.txt.xz", 0.59, 1, 40_000), ("pd_train.txt.xz", 0.41, 2, 20_000))
#: Options of rows beside the joint run's. The B of adapters begins at zero and has 100 steps to
#: grow: of 0.001, 0.004 and 0.016 for 30 steps of 256 tokens the last lifted small shapes most and
#: cost the dense shape most.
_SMOL = {"mode": "smol", "vector_rate": 0.008}
VARIANTS: dict[str, dict[str, Any]] = {
    "joint, frozen teacher": {"teacher": "frozen"},
    "joint, SMoL": _SMOL,
    "joint, SMoL, frozen teacher": {**_SMOL, "teacher": "frozen"},
    "joint, one shared LoRA": {**_SMOL, "experts": 1, "top_k": 1},
}
DEPTH_METHODS: tuple[DepthMethod, ...] = ("amoeba", "greedy", "single-drop", "influence", "random")
#: Shapes that are also tuned alone.
ALONE = ("d4-w1", "d4-w0.5", "d3-w0.75", "d2-w0.75")


@dataclass(frozen=True)
class Budget:
    """How much a run may do."""

    steps: int
    batch_tokens: int
    seeds: int
    heldout_windows: int
    calibration_windows: int


BUDGETS = {
    "short": Budget(100, 1024, 3, 24, 16),
    "full": Budget(2000, 8192, 3, 80, 64),
}


@dataclass(frozen=True)
class Run:
    """One row of the comparison under one seed."""

    row: str
    seed: int
    shape: str = ""

    @property
    def key(self) -> str:
        """Its name among the results."""
        return "/".join(filter(None, (self.row, self.shape, str(self.seed))))


@dataclass(frozen=True, eq=False)
class Bench:
    """The model, the texts and the budget that all rows share."""

    checkpoint: Checkpoint
    budget: Budget
    orders_BT: torch.Tensor
    choices_BT: torch.Tensor
    heldout_BT: torch.Tensor
    bytes_per_token: float
    sources: tuple[Source, ...]

    def supernet(self, width_method: WidthMethod = "flap", seed: int = 0) -> Supernet:
        """The dense model in order of importance."""
        model = Supernet.from_checkpoint(self.checkpoint)
        model.permute(self._orders(width_method, seed if width_method == "random" else 0))
        return model

    def space(self, model: Supernet, method: DepthMethod = "amoeba", seed: int = 0) -> ShapeSpace:
        """All shapes down to one block, depths chosen by `method`."""
        blocks = self._blocks(method, seed if method == "random" else 0)
        return ShapeSpace.of(model.spec, blocks)

    # Every run begins at the same cut, so it is looked for once.
    @cache  # noqa: B019 - there is one bench
    def _orders(self, method: WidthMethod, seed: int) -> WidthOrders:
        model = Supernet.from_checkpoint(self.checkpoint)
        return find_width_orders(model, self.orders_BT, method, seed)

    @cache  # noqa: B019
    def _blocks(self, method: DepthMethod, seed: int) -> dict[int, tuple[int, ...]]:
        paths = find_depth_paths(self.supernet(), self.choices_BT, (method,), 1, seed=seed)
        return paths[method].blocks

    def bits_per_byte(self, model: Supernet, shape: SubnetShape) -> float:
        """Held-out loss of a shape."""
        loss = mean_loss(model, self.heldout_BT, shape)
        return loss / math.log(2) / self.bytes_per_token


def main() -> None:
    options = _parser().parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    began, budget = time.monotonic(), BUDGETS[options.budget]
    bench = prepare(budget, options.corpus, options.cache)
    results = begun(options.output, options.budget, bench)
    if "untuned" not in results:
        results["untuned"] = untuned(bench)
        store(results, options.output)
    for run in runs(budget):
        if run.key in results["runs"]:
            continue
        if time.monotonic() - began > 60 * options.minutes:
            break
        results["runs"][run.key] = {**asdict(run), **measured(bench, run)}
        store(results, options.output)
        print(run.key, f"{results['runs'][run.key]['seconds']:.0f} s", flush=True)
    draw(results, ROOT / "docs" / "images")


def prepare(budget: Budget, corpus: Path, cache: Path) -> Bench:
    """Read and encode all texts; those for tuning are kept in `cache`."""
    checkpoint = Checkpoint.open(demo_checkpoint())
    tokenizer = Tokenizer.load(checkpoint.folder)

    def encode(documents: list[str]) -> TokenArray:
        return encode_corpus(
            documents,
            lambda text: tokenizer.encode(text.strip("\n"), add_bos=False),
            tokenizer.start_id,
        )

    calibration = encode(read_documents(checkpoint.folder / "calibration.txt"))
    drawn_BT = token_windows(calibration, 256, 2 * budget.calibration_windows, 0)
    heldout_documents = read_documents(checkpoint.folder / "heldout.txt")
    heldout = encode(heldout_documents)
    sources = []
    for name, share, stride, characters in TEXTS:
        path = cache / f"{name.split('.')[0]}-{characters}-{stride}.npy"
        if not path.exists():
            cache.mkdir(parents=True, exist_ok=True)
            documents = read_documents(corpus / name)[::stride]
            np.save(path, encode([document[:characters] for document in documents]))
        sources.append(Source(name, np.load(path), share))
    return Bench(
        checkpoint, budget,
        torch.from_numpy(drawn_BT[: budget.calibration_windows]),
        torch.from_numpy(drawn_BT[budget.calibration_windows :]),
        torch.from_numpy(token_windows(heldout, 257, budget.heldout_windows, 0)),
        sum(len(text.encode()) for text in heldout_documents) / heldout.size,
        tuple(sources),
    )  # fmt: skip


def untuned(bench: Bench) -> dict[str, Any]:
    """Losses of cuts before any tuning: the grid, each depth method, each width method."""
    model = bench.supernet()
    space = bench.space(model)
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


def runs(budget: Budget) -> Iterator[Run]:
    """All tunings, the most telling first."""
    yield from (Run("joint", seed) for seed in range(budget.seeds))
    yield from (Run(row, seed) for seed in range(budget.seeds) for row in VARIANTS)
    for seed in range(budget.seeds):
        for row in ("single, dense teacher", "share of joint"):
            yield from (Run(row, seed, name) for name in ALONE)
        yield Run("joint, no distillation", seed)
        yield Run("joint, no balancing", seed)
        yield Run("joint, random choices", seed)
        yield from (Run("single, text", seed, name) for name in ALONE)


def measured(bench: Bench, run: Run) -> dict[str, Any]:
    """Tune as a row says; held-out losses afterwards, the arithmetic spent, the seconds taken."""
    started = time.monotonic()
    at_random = "random" in run.row
    model = bench.supernet("random" if at_random else "flap", run.seed)
    space = bench.space(model, "random" if at_random else "amoeba", run.seed)
    shapes = {named.name: named for named in named_shapes(space)}
    options = TuneOptions(
        steps=bench.budget.steps,
        batch_tokens=bench.budget.batch_tokens,
        warmup_steps=bench.budget.steps // 20,
        distill=0.0 if "no distillation" in run.row or run.row == "single, text" else 1.0,
        balance="no balancing" not in run.row,
        seed=run.seed,
        **{"teacher": "tuned", **VARIANTS.get(run.row, {})},
    )
    if options.adapters is not None:
        model.adapters = ShapeAdapters.initialized(model.spec, options.adapters, run.seed)
    full_cost = cost(model, next(iter(shapes.values())))
    sandwich = Sandwich(space, options.random_shapes, run.seed)
    joint_cost = sum(
        cost(model, named) for step in range(options.steps) for named in sandwich(step)
    )
    teacher = None
    if run.shape:
        own = cost(model, shapes[run.shape])
        if "dense teacher" in run.row or "share" in run.row:
            teacher = bench.supernet("flap", run.seed)
            own += full_cost / 3  # forward only; backward takes twice as much
        if "share" in run.row:
            steps = max(1, round(joint_cost / len(shapes) / own))
            options = TuneOptions(**{**asdict(options), "steps": steps, "warmup_steps": 2})
        spent = own * options.steps
    else:
        # Weights that stay need the gradient of their inputs and none of their own.
        spent = joint_cost * (1 if options.adapters is None else 2 / 3)
        if options.teacher == "frozen":
            spent += options.steps * full_cost / 3
    sampler = only(shapes[run.shape]) if run.shape else sandwich
    mixture = Mixture(bench.sources, run.seed)
    ShapeTuner(model, sampler, mixture, options, teacher=teacher).run()
    measure = [shapes[run.shape]] if run.shape else list(shapes.values())
    return {
        "steps": options.steps,
        "arithmetic": spent / (full_cost * bench.budget.steps),
        "bits_per_byte": {named.name: bench.bits_per_byte(model, named.shape) for named in measure},
        "seconds": time.monotonic() - started,
    }


def cost(model: Supernet, named: NamedShape) -> float:
    """Multiplications per token of a shape: entries of its matrices, the head included."""
    spec, shape = model.spec, named.shape
    total = spec.vocab_size * spec.hidden_size
    for groups, neurons in zip(shape.groups, shape.neurons, strict=True):
        tensors = spec.block_tensors(groups, neurons).values()
        total += sum(math.prod(sizes) for sizes in tensors if len(sizes) == 2)
    return float(total)


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
    """Write the results with the table made from them."""
    results["table"] = table(results)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def table(results: dict[str, Any]) -> dict[str, Any]:
    """Rows against the dense shape, all other shapes, and the shapes that are tuned alone too."""
    grid, rows = results["untuned"]["grid"], {}
    rows["untuned"] = {name: [loss] for name, loss in grid.items()}
    arithmetic: dict[str, list[float]] = {"untuned": [0.0]}
    for run in results["runs"].values():
        losses = rows.setdefault(run["row"], {})
        arithmetic.setdefault(run["row"], []).append(run["arithmetic"])
        for name, loss in run["bits_per_byte"].items():
            losses.setdefault(name, []).append(loss)
    full, *others = grid
    lines = []
    for row, losses in rows.items():
        each = statistics.mean(arithmetic[row]) * (len(grid) if row.startswith("single") else 1)
        if row.startswith("share"):
            each *= len(grid)
        lines.append(
            [
                row,
                str(max(map(len, losses.values()))),
                _cell(losses, [full]),
                _cell(losses, others),
                *(_cell(losses, [name]) for name in ALONE),
                f"{each:.1f}" if each else "",
            ]
        )
    conditions = results["conditions"]
    caption = (
        f"Bits per byte of held-out text ({conditions['heldout_tokens']:,} tokens, never seen in "
        f"calibration or tuning), mean ± standard error over seeds; {conditions['model']}, budget "
        f"`{conditions['budget']}`: {conditions['steps']} steps of {conditions['batch_tokens']:,} "
        f"tokens. Arithmetic is what covering all {len(grid)} shapes costs in this way, in units "
        "of tuning the dense shape alone for as many steps."
    )
    columns = ["row", "seeds", "dense shape", f"mean of {len(others)} cuts", *ALONE, "arithmetic"]
    return {"columns": columns, "align": "lr" + "r" * 7, "rows": lines, "caption": caption}


def _cell(losses: dict[str, list[float]], names: list[str]) -> str:
    """Mean over shapes, then mean and standard error over seeds; empty where not measured."""
    if any(name not in losses for name in names):
        return ""
    seeds = min(len(losses[name]) for name in names)
    means = [statistics.mean(losses[name][seed] for name in names) for seed in range(seeds)]
    error = f" ± {statistics.stdev(means) / math.sqrt(seeds):.3f}" if seeds > 1 else ""
    return f"{statistics.mean(means):.3f}{error}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget", choices=sorted(BUDGETS), default="short")
    parser.add_argument("--minutes", type=float, default=15, help="start no run after this long")
    parser.add_argument("--corpus", type=Path, default=CORPUS, help="folder of training texts")
    parser.add_argument("--cache", type=Path, default=ROOT / ".demo" / "shapes")
    parser.add_argument("--output", type=Path, default=RESULTS)
    return parser


if __name__ == "__main__":
    main()
