"""`pliant build`: make an artifact from a checkpoint."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from pliant.cli.build_arguments import (
    AveragePlanes,
    Calibration,
    CodecName,
    DataFree,
    Finer,
    Force,
    Lora,
    MaxBlockError,
    MaxKl,
    Offline,
    OutputPath,
    Planes,
    RoundingOption,
    Source,
    TuneMode,
    TuneSteps,
    TuneText,
)
from pliant.cli.options import DryRun, Json, MaxRam, Quiet, Seed
from pliant.cli.output import Output, facts
from pliant.errors import UsageError
from pliant.measurement import MemoryLimit, format_bytes, format_seconds

if TYPE_CHECKING:
    from pliant.models import Checkpoint
    from pliant.receipt import Receipt
    from pliant.recipes.build_receipt import BuildReceipt

#: Endings of sources that are files; a folder is made of them first.
_FILES = (".gguf", ".bin")


def build(
    checkpoint: Source,
    output_path: OutputPath,
    calibration: Calibration = None,
    lora: Lora = None,
    codec: CodecName = "uniform",
    planes: Planes = None,
    average_planes: AveragePlanes = None,
    rounding: RoundingOption = "feedback",
    data_free: DataFree = False,
    finer: Finer = None,
    tune_steps: TuneSteps = 0,
    tune_text: TuneText = None,
    tune_mode: TuneMode = "smol",
    max_ram: MaxRam = None,
    max_kl: MaxKl = None,
    max_block_error: MaxBlockError = None,
    seed: Seed = 0,
    dry_run: DryRun = False,
    offline: Offline = False,
    force: Force = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make an artifact from a checkpoint; interrupted at any point it goes on when run again."""
    output = Output(as_json, quiet)
    if offline:
        go_offline()
    _check_free(output_path, force)
    if bool(tune_steps) != bool(tune_text):
        raise UsageError("Tuning takes --tune-steps and --tune-text together; one is missing.")
    from pliant.bits import most_planes

    choices: dict[str, Any] = {
        "codec": codec, "planes": most_planes(codec) if planes is None else planes,
        "average_planes": average_planes,
        "rounding": rounding, "finer": finer, "seed": seed,
    }  # fmt: skip
    if data_free:
        _check_data_free(
            calibration, finer, tune_steps, max_kl is not None, max_block_error is not None,
            rounding == "reconstruct", codec != "uniform", average_planes is not None,
        )  # fmt: skip
        _build_data_free(
            checkpoint, output_path, lora, output, dry_run,
            planes=choices["planes"], max_ram=max_ram, seed=seed, replace=force,
        )  # fmt: skip
        return
    bounds = {"max_kl": max_kl, "max_block_error": max_block_error}
    tune = {"steps": tune_steps, "mode": tune_mode, "seed": seed} if tune_steps else None
    with _checkpoint_of(checkpoint, output_path, lora, output) as source:
        plan = _plan(source, output_path, choices, max_ram, tune)
        if dry_run:
            output.emit(plan, facts(_readable_plan(plan)))
            return
        output.note(_announcement(plan, checkpoint))
        receipt = _build(
            source, output_path, output, choices, tune, tune_text or [],
            calibration=calibration, max_ram=max_ram, replace=force, bounds=bounds,
        )  # fmt: skip
    output.emit(msgspec.to_builtins(receipt, str_keys=True), facts(_readable_receipt(receipt)))


def _check_data_free(*unfit: object) -> None:
    if any(unfit):
        raise UsageError(
            "--data-free looks at no text and measures nothing; leave out --calibration, --codec, "
            "--finer, --rounding, tuning and bounds, or leave out --data-free."
        )


def _build_data_free(
    checkpoint: str,
    output_path: Path,
    lora: Path | None,
    output: Output,
    dry_run: bool,
    **arguments: Any,
) -> None:
    with _checkpoint_of(checkpoint, output_path, lora, output) as source:
        opened = open_checkpoint(source)
        with stops_held_back():
            from pliant.artifact import tensor_file_plan
            from pliant.recipes.data_free import build_data_free, data_free_memory
            from pliant.subnet import Subnet

        planes = arguments["planes"]
        plan = {
            "checkpoint": str(opened.folder),
            "artifact": str(output_path),
            "architecture": opened.spec.architecture,
            "parameters": Subnet.full(opened.spec).num_parameters,
            "codec": "uniform",
            "planes": planes,
            "average_planes": None,
            "artifact_bytes": sum(f.size for f in tensor_file_plan(opened.spec, planes).values()),
            "memory_bytes": data_free_memory(opened.spec, planes),
            "rounding": "nearest",
            "rounding_seconds": None,
        }
        if dry_run:
            output.emit(plan, facts(_readable_plan(plan)))
            return
        output.note(_announcement(plan, checkpoint))
        with resumable_stops(), output.progress() as progress:
            receipt = build_data_free(source, output_path, progress=progress, **arguments)
    output.emit(msgspec.to_builtins(receipt, str_keys=True), facts(_readable_receipt(receipt)))


def _announcement(plan: dict[str, Any], checkpoint: str) -> str:
    return (
        f"building {plan['artifact']} from {checkpoint}: {plan['parameters']:,} parameters, "
        f"{format_bytes(plan['artifact_bytes'])} on disk, "
        f"about {format_bytes(plan['memory_bytes'])} of memory{_learning(plan)}"
    )


@contextmanager
def _checkpoint_of(
    source: str, output_path: Path, lora: Path | None, output: Output
) -> Iterator[str]:
    """What the build reads: the source itself, or the folder that is made of it first."""
    if not source.endswith(_FILES) and lora is None:
        yield source
        return
    if lora is not None and not source.endswith(_FILES):
        open_checkpoint(source)  # says what to install where torch is missing
    from pliant.recipes.imports import as_checkpoint

    with (
        output.progress() as progress,
        as_checkpoint(source, output_path, lora, progress) as folder,
    ):
        yield folder


def go_offline() -> None:
    """Never ask the network; read by huggingface_hub when it is first imported."""
    os.environ["HF_HUB_OFFLINE"] = "1"


def _check_free(path: Path, force: bool) -> None:
    if path.suffix != ".pliant":
        raise UsageError(f"An artifact's name ends in .pliant; {path} does not.")
    if path.exists() and not force:
        raise UsageError(f"{path} exists already; give --force to replace it, or another name.")


def _plan(
    source: str,
    output_path: Path,
    choices: dict[str, Any],
    max_ram: int | None,
    tune: dict[str, Any] | None,
) -> dict[str, Any]:
    """What a build will read and write; checks the whole checkpoint but its weights' values."""
    from pliant.artifact import tensor_file_plan

    checkpoint = open_checkpoint(source)
    # These need torch, whose absence the line above explains.
    from pliant.recipes.build_options import BuildOptions
    from pliant.recipes.matrix_planes import bytes_left_out
    from pliant.recipes.memory_plan import plan_memory
    from pliant.recipes.tuned_checkpoint import read_record
    from pliant.subnet import Subnet
    from pliant.tune import TuneOptions, tuning_memory

    options = BuildOptions(**choices)
    limit = None if max_ram is None else MemoryLimit(max_ram)
    spec = checkpoint.spec
    length = min(options.window_tokens, spec.max_context)
    record = read_record(checkpoint.folder, spec)
    tuning = TuneOptions.of(**tune) if tune else None
    adapters = tuning.adapters if tuning else record.adapters if record else None
    files = tensor_file_plan(spec, options.planes, adapters)
    left_out = bytes_left_out(spec, options)
    memory_bytes = plan_memory(
        spec, options.windows, length, limit,
        rounding=options.rounding, adapters=adapters,
    ).total  # fmt: skip
    if tuning is not None:
        memory_bytes = max(memory_bytes, tuning_memory(spec, tuning).total)
    seconds = None
    if options.rounding != "nearest":
        from pliant.recipes.rounding_time import rounding_seconds

        seconds = rounding_seconds(spec, options.rounding, options.windows, length, options.planes)
    return {
        "checkpoint": str(checkpoint.folder),
        "artifact": str(output_path),
        "architecture": spec.architecture,
        "parameters": Subnet.full(spec).num_parameters,
        "codec": options.codec,
        "planes": options.planes,
        "average_planes": options.average_planes,
        "artifact_bytes": sum(file.size for file in files.values()) - left_out,
        "memory_bytes": memory_bytes,
        "rounding": options.rounding,
        "rounding_seconds": seconds,
    }


def open_checkpoint(source: str) -> Checkpoint:
    """The checkpoint of a command line; `UsageError` where torch is missing."""
    try:
        from pliant.models import Checkpoint
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise UsageError(
            "Building needs torch, which is not installed: pip install 'pliant[torch]'. "
            "Everything that is done with a finished artifact works without."
        ) from error
    return Checkpoint.open(source)


def _readable_plan(plan: dict[str, Any]) -> list[tuple[str, object]]:
    return [
        ("would build", plan["artifact"]),
        ("from", f"{plan['checkpoint']} ({plan['architecture']})"),
        ("parameters", f"{plan['parameters']:,}"),
        (
            "on disk",
            f"{format_bytes(plan['artifact_bytes'])} in {_planes_text(plan)}, {plan['codec']}",
        ),
        ("memory", f"about {format_bytes(plan['memory_bytes'])}"),
        ("rounding", plan["rounding"] + _learning(plan)),
    ]


def _planes_text(plan: dict[str, Any]) -> str:
    average = plan["average_planes"]
    return f"{plan['planes']} planes" + ("" if average is None else f", {average:g} on average")


def _learning(plan: dict[str, Any]) -> str:
    """How long rounding will take, where it is more than writing."""
    seconds = plan["rounding_seconds"]
    return "" if seconds is None else f", about {format_seconds(seconds)} to round all blocks"


def _build(
    source: str,
    output_path: Path,
    output: Output,
    choices: dict[str, Any],
    tune: dict[str, Any] | None,
    tune_text: list[Path],
    bounds: dict[str, float | None],
    **arguments: Any,
) -> BuildReceipt:
    with resumable_stops():
        with stops_held_back():
            from pliant.recipes.build import build as build_artifact
            from pliant.recipes.build_options import BuildOptions
            from pliant.recipes.one_for_all import build_tuned
            from pliant.recipes.quality import QualityBounds
            from pliant.tune import TuneOptions
        options = BuildOptions(**choices)
        arguments["bounds"] = QualityBounds(**bounds)
        with output.progress() as progress:
            if tune is None:
                return build_artifact(
                    source, output_path, options=options, progress=progress, **arguments
                )
            return build_tuned(
                source, output_path, tune_text, TuneOptions.of(**tune),
                options=options, progress=progress, note=output.note, **arguments,
            )  # fmt: skip


@contextmanager
def resumable_stops() -> Iterator[None]:
    """A service stops jobs by SIGTERM; make it the orderly, resumable stop that Ctrl-C is."""
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextmanager
def stops_held_back() -> Iterator[None]:
    """Deliver SIGINT and SIGTERM afterwards: an interrupted import of torch fails in odd ways."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _quality_line(found: Receipt) -> tuple[str, object]:
    """Bits and distance of one number of planes."""
    return (
        f"quality of {found.address}",
        f"{found.effective_bits:.2f} bits a weight, {found.bits_per_byte:.3f} bits/byte, KL "
        f"{found.kl_nats:.4f} (p99 {found.kl_p99_nats:.3f}), top-1 {found.top1_agreement:.1%}",
    )


def _block_lines(receipt: BuildReceipt) -> list[tuple[str, object]]:
    """The largest error of a block at each plane count; nothing where none was measured."""
    found = receipt.block_errors
    if not found:
        return []
    worst = {count: max(error[count] for error in found.values()) for count in found[0]}
    text = "  ".join(f"{count}: {error:.2%}" for count, error in worst.items())
    return [("error of the worst block", f"{text} by planes, mean square")]


def _loss_lines(receipt: BuildReceipt) -> list[tuple[str, object]]:
    """Losses and what chose the depths; what an artifact without text lacks instead."""
    dense = receipt.dense_loss
    if dense is None:
        return [("quality", "not measured: no text was looked at, and fit cannot choose cuts")]
    planes = "  ".join(
        f"{count}: {loss / dense - 1:+.2%}" for count, loss in sorted(receipt.plane_losses.items())
    )
    return [
        ("dense loss", f"{dense:.4f} nats per token of the calibration text"),
        ("loss by planes", planes),
        *map(_quality_line, receipt.receipts),
        *_block_lines(receipt),
        ("depths chosen by", receipt.depth_method),
    ]


def _readable_receipt(receipt: BuildReceipt) -> list[tuple[str, object]]:
    announced = format_bytes(receipt.predicted_bytes)
    return [
        ("artifact", f"{receipt.artifact}, {format_bytes(receipt.artifact_bytes)}"),
        ("parameters", f"{receipt.num_parameters:,}"),
        *_loss_lines(receipt),
        *(("warning", text) for text in receipt.warnings),
        ("took", format_seconds(receipt.seconds) + (", resumed" if receipt.was_resumed else "")),
        ("peak memory", f"{format_bytes(receipt.peak_bytes)}, {announced} announced"),
    ]
