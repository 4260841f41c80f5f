"""`pliant tune-shapes`: tune a checkpoint once, so that every shape of it is good."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
import typer

from pliant.cli.build import go_offline, open_checkpoint, resumable_stops, stops_held_back
from pliant.cli.build_arguments import Calibration, Finer, Force, Offline, Source, TuneText
from pliant.cli.options import DryRun, Json, MaxRam, Quiet, Seed
from pliant.cli.output import Output, facts
from pliant.errors import UsageError
from pliant.measurement import format_bytes, format_seconds

if TYPE_CHECKING:
    from pliant.recipes.tuned_checkpoint import TuneReceipt

Folder = Annotated[
    Path,
    typer.Option(
        "--output", "-o", envvar="PLIANT_OUTPUT", metavar="FOLDER",
        help="The checkpoint folder to write; `pliant build` takes it.",
    ),
]  # fmt: skip
Steps = Annotated[
    int,
    typer.Option(
        "--steps", envvar="PLIANT_STEPS", metavar="N", min=1, help="Steps of the optimizer."
    ),
]
BatchTokens = Annotated[
    int,
    typer.Option(
        "--batch-tokens", envvar="PLIANT_BATCH_TOKENS", metavar="N", min=1, help="Tokens per step."
    ),
]
MicroTokens = Annotated[
    int,
    typer.Option(
        "--micro-tokens", envvar="PLIANT_MICRO_TOKENS", metavar="N", min=1,
        help="Tokens that go through the network at a time.",
    ),
]  # fmt: skip
Window = Annotated[
    int,
    typer.Option(
        "--window", envvar="PLIANT_WINDOW", metavar="N", min=2, help="Tokens of a window."
    ),
]
Rate = Annotated[
    float | None,
    typer.Option(
        "--rate", envvar="PLIANT_RATE", metavar="R",
        help="Peak rate: 0.008 of adapters; with full 0.004 of matrices, a quarter for all else.",
    ),
]  # fmt: skip
Precision = Annotated[
    str,
    typer.Option(
        "--precision", envvar="PLIANT_PRECISION", metavar="float32|bfloat16", help="Arithmetic."
    ),
]
Checkpointing = Annotated[
    bool,
    typer.Option(
        "--checkpointing", envvar="PLIANT_CHECKPOINTING",
        help="Compute blocks twice instead of remembering them: less memory.",
    ),
]  # fmt: skip
TuneMode = Annotated[
    Literal["full", "smol"],
    typer.Option(
        "--mode", envvar="PLIANT_MODE", metavar="full|smol",
        help="Tune adapters that each shape but the full one mixes in its own way, or all weights.",
    ),
]  # fmt: skip
TeacherOption = Annotated[
    Literal["tuned", "frozen"],
    typer.Option(
        "--teacher", envvar="PLIANT_TEACHER", metavar="tuned|frozen",
        help="Shapes learn from the full one as it is tuned, or from the model as it was.",
    ),
]  # fmt: skip
Rank = Annotated[
    int,
    typer.Option(
        "--rank", envvar="PLIANT_RANK", metavar="R", min=1, help="With smol: rank of adapters."
    ),
]
Experts = Annotated[
    int,
    typer.Option(
        "--experts", envvar="PLIANT_EXPERTS", metavar="E", min=1,
        help="With smol: experts, two of them for a shape; 1 is a LoRA that all shapes share.",
    ),
]  # fmt: skip
Device = Annotated[
    str, typer.Option("--device", envvar="PLIANT_DEVICE", metavar="cpu|cuda", help="Where to tune.")
]


def tune_shapes(
    checkpoint: Source,
    output_path: Folder,
    tune_text: TuneText = None,
    steps: Steps = 1000,
    batch_tokens: BatchTokens = 4096,
    micro_tokens: MicroTokens = 1024,
    window: Window = 256,
    rate: Rate = None,
    precision: Precision = "float32",
    checkpointing: Checkpointing = False,
    mode: TuneMode = "smol",
    teacher: TeacherOption = "frozen",
    rank: Rank = 16,
    experts: Experts = 5,
    finer: Finer = None,
    device: Device = "cpu",
    calibration: Calibration = None,
    max_ram: MaxRam = None,
    seed: Seed = 0,
    dry_run: DryRun = False,
    offline: Offline = False,
    force: Force = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Tune a checkpoint once so that every shape is good; interrupted it goes on when run again.

    Under torchrun all processes work on one tuning.
    """
    output = Output(as_json, quiet)
    if offline:
        go_offline()
    settings: dict[str, Any] = {
        "steps": steps, "batch_tokens": batch_tokens, "micro_tokens": micro_tokens,
        "window_tokens": window, **_rates(mode, rate), "precision": precision,
        "checkpointing": checkpointing, "mode": mode,
        "teacher": teacher, "rank": rank, "experts": experts, "top_k": min(2, experts),
        "seed": seed,
    }  # fmt: skip
    choices: dict[str, Any] = {"seed": seed, "finer": finer}
    texts = _required(tune_text)
    plan = _plan(checkpoint, output_path, settings)
    if dry_run:
        output.emit(plan, facts(_readable_plan(plan)))
        return
    output.note(
        f"tuning {plan['tuned_parameters']:,} parameters on {steps * batch_tokens:,} tokens, "
        f"about {format_bytes(plan['memory_bytes'])} of memory"
    )
    with resumable_stops():
        with stops_held_back():
            from pliant.recipes.build_options import BuildOptions
            from pliant.recipes.one_for_all import tune_shapes as tune
            from pliant.tune import TuneOptions
        with output.progress() as progress:
            receipt = tune(
                checkpoint, output_path, texts, TuneOptions.of(**settings),
                calibration=calibration, options=BuildOptions(**choices),
                device=device, max_ram=max_ram, replace=force, progress=progress,
                note=output.note,
            )  # fmt: skip
    output.emit(msgspec.to_builtins(receipt), facts(_readable_receipt(receipt)))


def _rates(mode: str, rate: float | None) -> dict[str, float]:
    """The peak rates that one number means; none for those of the mode."""
    if rate is None:
        return {}
    return {"vector_rate": rate} if mode == "smol" else {
        "matrix_rate": rate, "vector_rate": rate / 4
    }  # fmt: skip


def _required(paths: Sequence[Path] | None) -> list[Path]:
    if not paths:
        raise UsageError("Tuning learns from text: name a file with --tune-text.")
    return list(paths)


def _plan(source: str, output_path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """What a tuning will take; checks the whole checkpoint but its weights' values."""
    checkpoint = open_checkpoint(source)
    from pliant.adapters import num_adapter_parameters
    from pliant.subnet import Subnet
    from pliant.tune import TuneOptions, tuning_memory

    options = TuneOptions.of(**settings)
    parameters = Subnet.full(checkpoint.spec).num_parameters
    tuned = parameters
    if options.adapters is not None:
        tuned = num_adapter_parameters(checkpoint.spec, options.adapters)
    return {
        "checkpoint": str(checkpoint.folder),
        "output": str(output_path),
        "parameters": parameters,
        "tuned_parameters": tuned,
        "tokens": options.steps * options.batch_tokens,
        "memory_bytes": tuning_memory(checkpoint.spec, options).total,
    }


def _readable_plan(plan: dict[str, Any]) -> list[tuple[str, object]]:
    return [
        ("would tune", plan["checkpoint"]),
        ("into", plan["output"]),
        (
            "parameters",
            f"{plan['parameters']:,}, of them tuned or added {plan['tuned_parameters']:,}",
        ),
        ("text", f"{plan['tokens']:,} tokens"),
        ("memory", f"about {format_bytes(plan['memory_bytes'])}"),
    ]


def _readable_receipt(receipt: TuneReceipt) -> list[tuple[str, object]]:
    losses = [
        (name, f"{before:.4f} -> {receipt.losses_after[name]:.4f} nats per token")
        for name, before in receipt.losses_before.items()
    ]
    announced = format_bytes(receipt.predicted_bytes)
    return [
        ("checkpoint", receipt.checkpoint),
        (
            "tuned",
            f"{receipt.num_shapes} shapes, {receipt.steps:,} steps, {receipt.tokens:,} tokens",
        ),
        *losses,
        ("took", format_seconds(receipt.seconds)),
        ("peak memory", f"{format_bytes(receipt.peak_bytes)}, {announced} announced"),
    ]
