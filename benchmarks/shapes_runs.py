"""Rows of `benchmarks/shapes.py`: what each tunes, and how it is measured."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from pliant.calibrate import (
    find_depth_paths,
    find_half_path,
    find_width_orders,
    find_width_ranking,
    mean_loss,
)
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
    DepthPath,
    ShapeSpace,
    SubnetShape,
    WidthMethod,
    WidthOrders,
)
from pliant.tune import NamedShape, Sandwich, ShapeTuner, TuneOptions, named_shapes, only

#: Texts, their share of the demo model's own training mixture, documents taken, characters of each.
TEXTS = (("children_train.txt.xz", 0.59, 1, 40_000), ("pd_train.txt.xz", 0.41, 2, 20_000))
DEPTH_METHODS: tuple[DepthMethod, ...] = ("amoeba", "greedy", "single-drop", "influence", "random")
#: Shapes that are also tuned alone.
ALONE = ("d4-w1", "d4-w0.5", "d3-w0.75", "d2-w0.75")


@dataclass(frozen=True)
class Row:
    """How the runs of one row tune.

    `options` stand beside those of the budget. A joint run takes `steps` (0: the budget's) or as
    many as show each shape between the ends in `visits` steps; it is over the shapes that `depth`
    and `width` choose, halves of blocks and ranked widths among them if `finer`. With `alone` a
    run tunes one shape, for as long as the budget, `steps` or its share of what `shares` costs.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    steps: int = 0
    visits: int = 0
    depth: DepthMethod = "amoeba"
    width: WidthMethod = "flap"
    finer: bool = False
    alone: bool = False
    shares: str = ""


#: The B of adapters begins at zero and has 100 steps to grow: of 0.001, 0.004 and 0.016 for 30
#: steps of 256 tokens the last lifted small shapes most and cost the dense shape most.
_SMOL = {"mode": "smol", "vector_rate": 0.008}
_PUBLISHED = {"teacher": "tuned"}
#: The recipe of longer runs, of methods and of finer shapes: the dense shape is spared and not run,
#: two more random shapes are run in its place.
_ANCHORED = {**_SMOL, "balance": False, "random_shapes": 4}
LONG = "joint, SMoL, anchored, 50 visits"
ROWS: dict[str, Row] = {
    "joint": Row(_PUBLISHED),
    "joint, frozen teacher": Row(),
    "joint, SMoL": Row({**_SMOL, **_PUBLISHED}),
    "joint, SMoL, frozen teacher": Row({**_SMOL, "anchored": False}),
    "joint, one shared LoRA": Row({**_SMOL, **_PUBLISHED, "experts": 1, "top_k": 1}),
    "joint, SMoL, anchored": Row(_ANCHORED),
    "joint, no distillation": Row({**_PUBLISHED, "distill": 0.0}),
    "joint, no balancing": Row({**_PUBLISHED, "balance": False}),
    "joint, random choices": Row(_PUBLISHED, depth="random", width="random"),
    "single, dense teacher": Row(alone=True),
    "single, text": Row({"distill": 0.0}, alone=True),
    "share of joint": Row(alone=True, shares="joint"),
    LONG: Row(_ANCHORED, visits=50),
    "joint, SMoL, anchored, 100 visits": Row(_ANCHORED, visits=100),
    "joint, frozen teacher, 50 visits": Row({"random_shapes": 4}, visits=50),
    "single, 50 steps": Row(alone=True, steps=50),
    "share of 50 visits": Row(alone=True, shares=LONG),
    "single, as many steps as 50 visits": Row(alone=True, steps=288),
    "finer": Row(_ANCHORED, finer=True),
}
#: Each method of choosing blocks and channels under the same tuning; of the default ones the row.
METHODS: dict[tuple[str, str], str] = {
    **{("depth", method): f"depth by {method}" for method in DEPTH_METHODS},
    **{("width", method): f"width by {method}" for method in WIDTH_METHODS},
}
ROWS |= {METHODS["depth", method]: Row(_ANCHORED, depth=method) for method in DEPTH_METHODS}
ROWS |= {METHODS["width", method]: Row(_ANCHORED, width=method) for method in WIDTH_METHODS}
METHODS["depth", "amoeba"] = METHODS["width", "flap"] = "joint, SMoL, anchored"


@dataclass(frozen=True)
class Budget:
    """How much a run may do."""

    steps: int
    batch_tokens: int
    seeds: int
    heldout_windows: int
    calibration_windows: int


@dataclass(frozen=True)
class Run:
    """One row of the comparison under one seed; of one `shape` where it is tuned alone."""

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

    def path(self, method: DepthMethod = "amoeba", seed: int = 0) -> DepthPath:
        """Blocks by depth, down to one, as a method chooses them."""
        return self._path(method, seed if method == "random" else 0)

    def space(self, row: Row = ROWS["joint"], seed: int = 0) -> ShapeSpace:
        """All shapes of a row."""
        whole = ShapeSpace.of(self.checkpoint.spec, self.path(row.depth, seed).blocks)
        return self.finer_space(whole) if row.finer else whole

    def finer_space(self, whole: ShapeSpace) -> ShapeSpace:
        """With halves of blocks and widths ranked across blocks."""
        path, ranking = self._finer()
        kept = sorted(path.blocks.items(), reverse=True)[1:]
        halves = tuple(blocks for _, blocks in kept)
        return msgspec.structs.replace(whole, halves=halves, ranking=ranking)

    # Every run begins at the same cut, so it is looked for once.
    @cache  # noqa: B019 - there is one bench
    def _orders(self, method: WidthMethod, seed: int) -> WidthOrders:
        model = Supernet.from_checkpoint(self.checkpoint)
        return find_width_orders(model, self.orders_BT, method, seed)

    @cache  # noqa: B019
    def _path(self, method: DepthMethod, seed: int) -> DepthPath:
        return find_depth_paths(self.supernet(), self.choices_BT, (method,), 1, seed=seed)[method]

    @cache  # noqa: B019
    def _finer(self) -> tuple[DepthPath, Any]:
        model = self.supernet()
        path = find_half_path(model, self.choices_BT, "greedy", 1)
        return path, find_width_ranking(model, self.orders_BT)

    def bits_per_byte(self, model: Supernet, shape: SubnetShape) -> float:
        """Held-out loss of a shape."""
        loss = mean_loss(model, self.heldout_BT, shape)
        return loss / math.log(2) / self.bytes_per_token

    def finer_losses(self, model: Supernet) -> dict[str, float]:
        """Held-out losses of all finer shapes of full width, or of all blocks."""
        space = self.finer_space(self.space())
        wanted = {f"h{len(kept)}-w1" for kept in space.halves}
        wanted |= {f"d{len(space.depths[0])}-g{width:g}" for width in space.widths[1:]}
        return {
            name: self.bits_per_byte(model, shape)
            for name, shape in space.named()
            if name in wanted
        }


def prepare(budget: Budget, corpus: Path, cached: Path) -> Bench:
    """Read and encode all texts; those for tuning are kept in `cached`."""
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
        path = cached / f"{name.split('.')[0]}-{characters}-{stride}.npy"
        if not path.exists():
            cached.mkdir(parents=True, exist_ok=True)
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


def runs(seeds: int) -> Iterator[Run]:
    """All tunings, the most telling first."""
    for seed in range(seeds):
        yield from (
            Run(row, seed) for row in ("joint", "joint, frozen teacher", "joint, SMoL",
                                       "joint, SMoL, frozen teacher", "joint, one shared LoRA")
        )  # fmt: skip
    alone = ("single, dense teacher", "share of joint", "single, text")
    yield from (Run(row, 0, name) for row in alone for name in ALONE)
    yield from (Run(f"joint, {row}", 0)
                for row in ("no distillation", "no balancing", "random choices"))  # fmt: skip
    yield Run(LONG, 0)
    for row in ("single, 50 steps", "share of 50 visits"):
        yield from (Run(row, 0, name) for name in ALONE)
    yield from (Run(row, 0) for row in dict.fromkeys(METHODS.values()))
    yield Run("finer", 0)
    for seed in range(1, seeds):
        yield Run(LONG, seed)
        for row in ("single, 50 steps", "share of 50 visits"):
            yield from (Run(row, seed, name) for name in ALONE)
    yield Run("joint, frozen teacher, 50 visits", 0)
    yield Run("joint, SMoL, anchored, 100 visits", 0)
    yield from (Run("single, as many steps as 50 visits", 0, name) for name in ALONE)
    for seed in range(1, seeds):
        yield from (Run(row, seed) for row in dict.fromkeys(METHODS.values()))
        yield Run("finer", seed)


def settings(bench: Bench, run: Run) -> TuneOptions:
    """Everything that a joint run of a row takes."""
    row, steps = ROWS[run.row], ROWS[run.row].steps or bench.budget.steps
    options = TuneOptions(
        steps=steps, batch_tokens=bench.budget.batch_tokens, warmup_steps=steps // 20,
        seed=run.seed, **row.options,
    )  # fmt: skip
    if row.visits:
        between = len(bench.space(row, run.seed)) - 2
        steps = math.ceil(row.visits * between / options.random_shapes)
        options = replace(options, steps=steps, warmup_steps=steps // 20)
    return options


def arithmetic(bench: Bench, run: Run) -> float:
    """Multiplications per token of all steps of a joint run, a backward pass two forward ones."""
    options, space = settings(bench, run), bench.space(ROWS[run.row], run.seed)
    sandwich, full = Sandwich(space, options.random_shapes, run.seed), next(space.named())[1]
    adapters = options.adapters
    total = 0.0
    for step in range(options.steps):
        shapes = sandwich(step)[1 if adapters and adapters.anchored else 0 :]
        # Weights that stay need the gradient of their inputs and none of their own.
        total += sum(cost(named.shape, space) for named in shapes) * (2 / 3 if adapters else 1)
        total += cost(full, space) / 3 if options.teacher == "frozen" else 0.0
    return total


def measured(bench: Bench, run: Run, keep: Path | None = None) -> dict[str, Any]:
    """Tune as a row says; held-out losses afterwards, the arithmetic spent, the seconds taken."""
    started, row = time.monotonic(), ROWS[run.row]
    model, space = bench.supernet(row.width, run.seed), bench.space(row, run.seed)
    shapes = {named.name: named for named in named_shapes(space)}
    full = cost(next(iter(shapes.values())).shape, space)
    options, teacher = settings(bench, run), None
    if row.alone:
        named = shapes[run.shape]
        own, teacher = cost(named.shape, space), None
        if options.distill:
            teacher, own = bench.supernet(), own + full / 3  # forward only
        if row.shares:
            own_share = arithmetic(bench, Run(row.shares, run.seed)) / len(shapes)
            options = replace(options, steps=max(1, round(own_share / own)), warmup_steps=2)
        spent, sampler = own * options.steps, only(named)
    else:
        spent = arithmetic(bench, run)
        sampler = Sandwich(space, options.random_shapes, run.seed)
    if options.adapters is not None:
        model.adapters = ShapeAdapters.initialized(model.spec, options.adapters, run.seed)
    ShapeTuner(model, sampler, Mixture(bench.sources, run.seed), options, teacher=teacher).run()
    grid = named_shapes(bench.space(replace(row, finer=False), run.seed))
    measure: tuple[NamedShape, ...] = (shapes[run.shape],) if row.alone else grid
    results = {
        "steps": options.steps,
        "arithmetic": spent / (full * bench.budget.steps),
        "bits_per_byte": {named.name: bench.bits_per_byte(model, named.shape) for named in measure},
    }
    if run.row in ("finer", "joint, SMoL, anchored", LONG):
        results["finer"] = bench.finer_losses(model)
    if keep is not None:
        kept_checkpoint(bench, model, run, options, keep)
    return results | {"seconds": time.monotonic() - started}


def cost(shape: SubnetShape, space: ShapeSpace) -> float:
    """Multiplications per token of a shape: entries of its matrices, the head included."""
    spec = space.spec
    total = spec.vocab_size * spec.hidden_size
    for groups, neurons in zip(shape.groups, shape.neurons, strict=True):
        tensors = spec.block_tensors(groups, neurons).values()
        total += sum(math.prod(sizes) for sizes in tensors if len(sizes) == 2)
    return float(total)


def kept_checkpoint(
    bench: Bench, model: Supernet, run: Run, options: TuneOptions, folder: Path
) -> None:
    """Write a tuned model as `pliant tune-shapes` would, its losses those of this benchmark."""
    from pliant.recipes.build import COMPANIONS
    from pliant.recipes.tuned_checkpoint import TuneReceipt, TuningRecord, write_tuned

    path = bench.path(ROWS[run.row].depth, run.seed)
    receipt = TuneReceipt(
        checkpoint=str(folder), steps=options.steps, tokens=options.steps * options.batch_tokens,
        num_shapes=len(bench.space(ROWS[run.row], run.seed)), losses_before={}, losses_after={},
        seconds=0.0, peak_bytes=0, predicted_bytes=0,
    )  # fmt: skip
    record = TuningRecord(version=1, settings=asdict(options), receipt=receipt,
                          depth_paths={path.method: path}, adapters=options.adapters)  # fmt: skip
    write_tuned(model, bench.checkpoint.folder, COMPANIONS, record, folder)
