"""`tune_shapes`: one tuning after which every shape of a model is good.

    checkpoint → calibration tokens → width orders → depth paths → tuning → tuned checkpoint

The weights come out in order of importance, so a build of the tuned checkpoint cuts the very shapes
that were tuned. `build_tuned` does both. Every stage leaves its result in a state folder beside the
output: a run that was stopped goes on and ends in the same bits.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch

from pliant.calibrate import CACHE_BYTES, find_depth_paths, find_width_orders, mean_loss
from pliant.errors import InterruptedJobError, UsageError
from pliant.measurement import Progress, peak_memory_bytes, silent
from pliant.models import Checkpoint, ShapeAdapters, Supernet
from pliant.recipes.build import COMPANIONS, build
from pliant.recipes.build_options import BuildOptions
from pliant.recipes.build_receipt import BuildReceipt
from pliant.recipes.calibration_text import CalibrationTokens, calibration_windows
from pliant.recipes.finer import Finer, find_finer
from pliant.recipes.quality import QualityBounds
from pliant.recipes.tuned_checkpoint import (
    TuneReceipt,
    TuningRecord,
    differences,
    read_record,
    write_tuned,
)
from pliant.recipes.tuning_text import TuningText, tuning_text
from pliant.runtime import Tokenizer
from pliant.shape import DepthPath, ShapeSpace, WidthOrders
from pliant.tune import (
    LOG_FILE,
    NamedShape,
    Sandwich,
    ShapeTuner,
    StopRequest,
    TuneOptions,
    Workers,
    available_bytes,
    inversions,
    joined_workers,
    named_shapes,
    require_memory,
    require_one_process,
)

#: Receives sentences for the reader.
Note = Callable[[str], None]


class Choices(msgspec.Struct, frozen=True):
    """Which shapes will be tuned: orders, a depth path, and losses before the tuning."""

    orders: WidthOrders
    path: DepthPath
    losses: dict[str, float]
    finer: Finer = Finer()

    def space(self, model: Supernet) -> ShapeSpace:
        """Every depth of the path at every width; with halves of blocks and ranked widths."""
        space = ShapeSpace.of(model.spec, self.path.blocks)
        halves = self.finer.half_path
        kept = [] if halves is None else sorted(halves.blocks.items(), reverse=True)[1:]
        return msgspec.structs.replace(
            space, halves=tuple(blocks for _, blocks in kept), ranking=self.finer.width_ranking
        )


def tune_shapes(
    checkpoint: str | Path,
    output: str | Path,
    texts: Sequence[str | Path],
    tune: TuneOptions,
    *,
    calibration: str | Path | None = None,
    options: BuildOptions | None = None,
    device: str = "cpu",
    max_ram: int | None = None,
    replace: bool = False,
    progress: Progress = silent,
    note: Note = lambda sentence: None,
) -> TuneReceipt:
    """Tune a model for all its shapes and write it as a checkpoint folder that `build` takes.

    `texts` are learnt from; `calibration` chooses orders and blocks and is only measured on.
    Windows are at most as long as the context. State lies in `OUTPUT.tuning` until the end; an
    output of the same settings is returned as it is. Under `torchrun` all processes work on one
    run. `max_ram` bounds the predicted memory (default: what is free).

    Raises `UsageError` for an output or state of other settings (it names them), `DataError` for
    texts that cannot be used, `OutOfSpaceError` where the batch does not fit, and
    `InterruptedJobError` when stopped by SIGINT or SIGTERM, after saving.
    """
    target = _device(device)
    source = Checkpoint.open(checkpoint)
    tune = dataclasses.replace(tune, window_tokens=min(tune.window_tokens, source.spec.max_context))
    options = options or BuildOptions(seed=tune.seed)
    free = available_bytes(target) if max_ram is None else max_ram
    predicted = require_memory(source.spec, tune, free).total
    tokenizer = Tokenizer.load(source.folder)
    state = Path(output).with_name(Path(output).name + ".tuning")
    with joined_workers(target) as workers:
        text = tuning_text(
            [Path(path) for path in texts], tokenizer, source.folder / "tokenizer.json",
            state / "tokens", tune.window_tokens + 1, tune.steps * tune.batch_tokens, tune.seed,
        )  # fmt: skip
        tokens = calibration_windows(
            source.spec, tokenizer, calibration, options.windows, options.window_tokens,
            options.seed,
        )  # fmt: skip
        settings = _settings(source, text, tokens, tune, options)
        finished = _finished(Path(output), source, settings, replace)
        if finished is not None:
            _removed(state, workers)
            return finished
        for warning in text.warnings if workers.is_first else ():
            note(f"warning: {warning}")
        _check_state(state, settings, workers)
        run = _Run(source, text, tokens, tune, options, settings, state, workers, progress)
        receipt = run.tuned(Path(output), target, predicted)
        for warning in receipt.warnings if workers.is_first else ():
            if warning not in text.warnings:
                note(f"warning: {warning}")
        _removed(state, workers)
    return receipt


def build_tuned(
    checkpoint: str | Path,
    output: str | Path,
    texts: Sequence[str | Path],
    tune: TuneOptions,
    *,
    calibration: str | Path | None = None,
    options: BuildOptions | None = None,
    device: str = "cpu",
    max_ram: int | None = None,
    replace: bool = False,
    bounds: QualityBounds | None = None,
    progress: Progress = silent,
    note: Note = lambda sentence: None,
) -> BuildReceipt:
    """Tune a model for all its shapes, then build the artifact of the tuned weights.

    The tuned checkpoint lies in `OUTPUT.tuned` until the artifact is whole. See `tune_shapes` and
    `build` for arguments and errors; `UsageError` under `torchrun` with several processes.
    """
    require_one_process()
    folder = Path(output).with_name(Path(output).name + ".tuned")
    # The artifact records the name of the folder that it was built from.
    tuned = folder / Checkpoint.open(checkpoint).folder.resolve().name
    tuning = tune_shapes(
        checkpoint, tuned, texts, tune, calibration=calibration, options=options, device=device,
        max_ram=max_ram, progress=progress, note=note,
    )  # fmt: skip
    receipt = build(
        tuned, output, calibration=calibration, options=options, max_ram=max_ram,
        replace=replace, bounds=bounds, progress=progress,
    )  # fmt: skip
    shutil.rmtree(folder)
    predicted = max(tuning.predicted_bytes, receipt.predicted_bytes)
    return msgspec.structs.replace(receipt, predicted_bytes=predicted)


@dataclass(frozen=True)
class _Run:
    """One tuning: its inputs, and a method for each stage."""

    source: Checkpoint
    text: TuningText
    tokens: CalibrationTokens
    tune: TuneOptions
    options: BuildOptions
    settings: dict[str, Any]
    state: Path
    workers: Workers
    progress: Progress

    def tuned(self, output: Path, device: torch.device, predicted: int) -> TuneReceipt:
        """All stages; what a run that was stopped has finished is taken from its folder."""
        model = Supernet.from_checkpoint(self.source)
        model.to(device)
        choices = self._choices(model)
        model.permute(choices.orders)
        if self.tune.adapters is not None:
            model.adapters = ShapeAdapters.initialized(
                model.spec, self.tune.adapters, self.tune.seed
            )
            model.adapters.to(device)
        space = choices.space(model)
        fingerprint = hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()
        tuner = ShapeTuner(
            model, Sandwich(space, self.tune.random_shapes, self.tune.seed), self.text.mixture,
            self.tune, folder=self.state, fingerprint=fingerprint, workers=self.workers,
        )  # fmt: skip
        # Products of tiny gradients are a hundred times slower as denormals.
        torch.set_flush_denormal(True)
        try:
            with StopRequest() as stop:
                tuner.run(stop, self.progress if self.workers.is_first else silent)
        finally:
            torch.set_flush_denormal(False)
        if not tuner.is_done:
            raise InterruptedJobError(
                f"Stopped after {tuner.progress.step} of {self.tune.steps} steps; the same command "
                "goes on from there."
            )
        after = self._losses(model, space)
        receipt = TuneReceipt(
            checkpoint=str(output),
            steps=self.tune.steps,
            tokens=tuner.progress.tokens,
            num_shapes=len(space),
            losses_before=choices.losses,
            losses_after=after,
            seconds=tuner.progress.seconds,
            peak_bytes=_peak_bytes(device),
            predicted_bytes=predicted,
            warnings=self.text.warnings + tuple(_of_inversions(space, after)),
        )
        if self.workers.is_first:
            record = TuningRecord(
                version=1, settings=self.settings, receipt=receipt,
                depth_paths={choices.path.method: choices.path}, adapters=self.tune.adapters,
                finer=choices.finer,
            )  # fmt: skip
            write_tuned(model, self.source.folder, COMPANIONS, record, output)
            shutil.copyfile(self.state / LOG_FILE, output / LOG_FILE)
        return receipt

    def _choices(self, model: Supernet) -> Choices:
        """The stored choices, or those of the first process, which all others wait for."""
        path = self.state / "choices.json"
        if self.workers.is_first and not path.exists():
            choices = self._choose(Supernet(model.spec, dict(model.weights), model.shape))
            partial = path.with_suffix(".partial")
            partial.write_bytes(msgspec.json.encode(choices))
            partial.replace(path)
        self.workers.wait()
        return msgspec.json.decode(path.read_bytes(), type=Choices)

    def _choose(self, model: Supernet) -> Choices:
        """Orders and paths of the untuned model, or those that its own record names."""
        spec, options = model.spec, self.options
        min_blocks, first, last = options.depth_limits(spec.num_blocks)
        record = read_record(self.source.folder, spec)
        if record is not None and record.adapters is not None:
            raise UsageError(
                f"{self.source.folder} has adapters from a tuning; tune the checkpoint they were "
                "made for, or build this one."
            )
        if record is not None:
            orders, paths = WidthOrders.identity(spec), record.depth_paths
            finer = record.finer
        else:
            orders_BT = torch.from_numpy(self.tokens.orders_BT)
            orders = find_width_orders(
                model, orders_BT, options.width_method, options.seed, progress=self.progress
            )
            model.permute(orders)
            paths = find_depth_paths(
                model, torch.from_numpy(self.tokens.choices_BT), options.depth_methods, min_blocks,
                protect_first=first, protect_last=last, seed=options.seed, progress=self.progress,
            )  # fmt: skip
            finer = Finer()
        if options.finer is not None and finer.half_path is None:
            finer = find_finer(
                model, self.tokens, options.finer, options.width_method, min_blocks,
                protect_first=first, protect_last=last, seed=options.seed,
                cache_bytes=CACHE_BYTES, progress=self.progress,
            )  # fmt: skip
        # The others are not recorded: a build must not prefer blocks that were not tuned together.
        best = min(paths.values(), key=lambda path: sum(path.losses.values()))
        unmeasured = Choices(orders, best, {}, finer)
        losses = self._losses(model, unmeasured.space(model))
        return msgspec.structs.replace(unmeasured, losses=losses)

    def _losses(self, model: Supernet, space: ShapeSpace) -> dict[str, float]:
        """Nats per token on the calibration windows that choose, of the shapes of a receipt."""
        windows_BT = torch.from_numpy(self.tokens.choices_BT)
        windows_BT = windows_BT.to(model.weights["embedding"].device)
        frozen = model.sharing({n: w.detach() for n, w in model.weights.items()})
        return {
            named.name: mean_loss(frozen, windows_BT, named.shape) for named in _reported(space)
        }


def _of_inversions(space: ShapeSpace, losses: dict[str, float]) -> Iterator[str]:
    for larger, smaller in inversions(_reported(space), losses):
        yield (
            f"{larger} is worse than {smaller}, which is smaller ({losses[larger]:.3f} and "
            f"{losses[smaller]:.3f} nats per token); more steps help, or take the smaller one."
        )


def _reported(space: ShapeSpace) -> list[NamedShape]:
    """Every depth at full width, every width at full depth, and the smallest shape."""
    shapes, widths = named_shapes(space), len(space.widths)
    return [
        named
        for place, named in enumerate(shapes)
        if place < widths or place % widths == 0 or place == len(shapes) - 1
    ]


def _settings(
    source: Checkpoint,
    text: TuningText,
    tokens: CalibrationTokens,
    tune: TuneOptions,
    options: BuildOptions,
) -> dict[str, Any]:
    """Everything that decides the tuned weights, as JSON holds it."""
    names = ("width_method", "depth_methods", "min_blocks", "protect_first", "protect_last",
             "finer")  # fmt: skip
    settings = {
        "checkpoint": source.fingerprint,
        "text": text.fingerprint,
        "calibration": tokens.fingerprint,
        **{name: getattr(options, name) for name in names},
        "order_seed": options.seed,
        **asdict(tune),
    }
    return dict(json.loads(json.dumps(settings)))


def _finished(
    output: Path, source: Checkpoint, settings: dict[str, Any], replace: bool
) -> TuneReceipt | None:
    """The receipt of an output of these settings; `UsageError` where another is in the way."""
    if not output.exists() or replace:
        return None
    record = read_record(output, source.spec)
    found = "is no tuned checkpoint" if record is None else differences(settings, record.settings)
    if record is not None and not found:
        return record.receipt
    raise UsageError(f"{output} exists already ({found}); give --force to replace it.")


def _check_state(state: Path, settings: dict[str, Any], workers: Workers) -> None:
    """Begin a state folder, or see that it was begun with the same settings."""
    path = state / "settings.json"
    if workers.is_first and path.exists():
        found = differences(settings, json.loads(path.read_bytes()))
        if found:
            raise UsageError(
                f"The tuning in {state} was begun with other settings: {found}. Give those it was "
                "begun with, or remove the folder to start again."
            )
    elif workers.is_first:
        state.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings), encoding="utf-8")
    workers.wait()


def _removed(state: Path, workers: Workers) -> None:
    """Remove a state folder once no process reads it any more."""
    workers.wait()
    if workers.is_first:
        shutil.rmtree(state)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"There is no device {name!r}; use cpu or cuda.") from error
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"Tuning runs on cpu and cuda; {name!r} was asked for.")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError("There is no CUDA device that torch can use here; leave out --device.")
    if device.type == "cuda":
        # torchrun numbers the processes of a machine; each takes the GPU of its number.
        place = int(os.environ.get("LOCAL_RANK", "0")) if device.index is None else device.index
        device = torch.device("cuda", place)
        torch.cuda.set_device(device)
    return device


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return peak_memory_bytes()
