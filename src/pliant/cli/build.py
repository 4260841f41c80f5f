"""`pliant build`: make an artifact from a checkpoint."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
import typer

from pliant.cli.options import DryRun, Json, MaxRam, Quiet, Seed
from pliant.cli.output import Output, facts
from pliant.errors import UsageError
from pliant.measurement import MemoryLimit, format_bytes, format_seconds

if TYPE_CHECKING:
    from pliant.models import Checkpoint
    from pliant.receipt import Receipt
    from pliant.recipes.build_receipt import BuildReceipt

Source = Annotated[
    str,
    typer.Argument(
        metavar="CHECKPOINT",
        help="A Hugging Face folder, a model id such as org/name, or a GGUF or llama2.c file.",
    ),
]
OutputPath = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        envvar="PLIANT_OUTPUT",
        metavar="X.pliant",
        help="The artifact to write, X.pliant.",
    ),
]
Calibration = Annotated[
    Path | None,
    typer.Option(
        "--calibration",
        envvar="PLIANT_CALIBRATION",
        metavar="FILE",
        help="UTF-8 text to calibrate on (a packaged excerpt of public-domain books).",
    ),
]
#: Endings of sources that are files; a folder is made of them first.
_FILES = (".gguf", ".bin")
Lora = Annotated[
    Path | None,
    typer.Option(
        "--lora",
        envvar="PLIANT_LORA",
        metavar="FOLDER",
        help="A LoRA adapter of PEFT, merged into the weights first.",
    ),
]
Planes = Annotated[
    int,
    typer.Option(
        "--planes", envvar="PLIANT_PLANES", metavar="N", min=1, max=8, help="Bit-planes stored."
    ),
]
Finer = Annotated[
    str | None,
    typer.Option(
        "--finer",
        envvar="PLIANT_FINER",
        metavar="METHOD",
        help="Offer cuts of half blocks too, chosen by greedy, single-drop or amoeba, and widths "
        "ranked across blocks; only pliant runs these.",
    ),
]
TuneSteps = Annotated[
    int,
    typer.Option(
        "--tune-steps",
        envvar="PLIANT_TUNE_STEPS",
        metavar="N",
        min=0,
        help="Tune every shape first, for N steps of 4,096 tokens; see tune-shapes.",
    ),
]
TuneText = Annotated[
    list[Path] | None,
    typer.Option(
        "--tune-text",
        envvar="PLIANT_TUNE_TEXT",
        metavar="FILE",
        help="UTF-8 text to tune on, or .txt.xz; repeatable.",
    ),
]
TuneMode = Annotated[
    Literal["full", "smol"],
    typer.Option(
        "--tune-mode", envvar="PLIANT_TUNE_MODE", metavar="full|smol",
        help="Tune adapters stored beside the planes, or all weights; see tune-shapes.",
    ),
]  # fmt: skip
RoundingOption = Annotated[
    Literal["reconstruct", "feedback", "nearest"],
    typer.Option(
        "--rounding",
        envvar="PLIANT_ROUNDING",
        metavar="METHOD",
        help="On the calibration text: `feedback`, or best and slow `reconstruct`; or `nearest`.",
    ),
]
MaxKl = Annotated[
    float | None,
    typer.Option(
        "--max-kl",
        envvar="PLIANT_MAX_KL",
        metavar="NATS",
        min=0.0,
        help="Exit 4 where all planes are further from the dense model; what was built is kept.",
    ),
]
Offline = Annotated[
    bool, typer.Option("--offline", envvar="PLIANT_OFFLINE", help="Never ask the network.")
]
Force = Annotated[
    bool, typer.Option("--force", envvar="PLIANT_FORCE", help="Replace an artifact that exists.")
]


def build(
    checkpoint: Source,
    output_path: OutputPath,
    calibration: Calibration = None,
    lora: Lora = None,
    planes: Planes = 8,
    rounding: RoundingOption = "feedback",
    finer: Finer = None,
    tune_steps: TuneSteps = 0,
    tune_text: TuneText = None,
    tune_mode: TuneMode = "smol",
    max_ram: MaxRam = None,
    max_kl: MaxKl = None,
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
    choices: dict[str, Any] = {
        "planes": planes, "rounding": rounding, "finer": finer, "seed": seed
    }  # fmt: skip
    tune = {"steps": tune_steps, "mode": tune_mode, "seed": seed} if tune_steps else None
    with _checkpoint_of(checkpoint, output_path, lora, output) as source:
        plan = _plan(source, output_path, choices, max_ram, tune)
        if dry_run:
            output.emit(plan, facts(_readable_plan(plan)))
            return
        output.note(
            f"building {output_path} from {checkpoint}: {plan['parameters']:,} parameters, "
            f"{format_bytes(plan['artifact_bytes'])} on disk, "
            f"about {format_bytes(plan['memory_bytes'])} of memory{_learning(plan)}"
        )
        receipt = _build(
            source, output_path, output, choices, tune, tune_text or [],
            calibration=calibration, max_ram=max_ram, replace=force, max_kl=max_kl,
        )  # fmt: skip
    output.emit(msgspec.to_builtins(receipt, str_keys=True), facts(_readable_receipt(receipt)))


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
    from pliant.recipes.memory_plan import plan_memory
    from pliant.recipes.tuned_checkpoint import read_record
    from pliant.subnet import Subnet
    from pliant.tune import TuneOptions, tuning_memory

    options = BuildOptions(**choices)
    limit = None if max_ram is None else MemoryLimit(max_ram)
    spec = checkpoint.spec
    record = read_record(checkpoint.folder, spec)
    tuning = TuneOptions.of(**tune) if tune else None
    adapters = tuning.adapters if tuning else record.adapters if record else None
    files = tensor_file_plan(spec, options.planes, adapters)
    memory_bytes = plan_memory(
        spec, options.windows, min(options.window_tokens, spec.max_context), limit,
        rounding=options.rounding, adapters=adapters,
    ).total  # fmt: skip
    if tuning is not None:
        memory_bytes = max(memory_bytes, tuning_memory(spec, tuning).total)
    seconds = None
    if options.rounding == "reconstruct":
        from pliant.calibrate import ReconstructionOptions, reconstruction_seconds

        length = min(options.window_tokens, spec.max_context)
        seconds = reconstruction_seconds(
            spec, options.windows, length, options.planes, ReconstructionOptions()
        )
    return {
        "checkpoint": str(checkpoint.folder),
        "artifact": str(output_path),
        "architecture": spec.architecture,
        "parameters": Subnet.full(spec).num_parameters,
        "planes": options.planes,
        "artifact_bytes": sum(file.size for file in files.values()),
        "memory_bytes": memory_bytes,
        "rounding": options.rounding,
        "reconstruction_seconds": seconds,
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
        ("on disk", f"{format_bytes(plan['artifact_bytes'])} in {plan['planes']} planes"),
        ("memory", f"about {format_bytes(plan['memory_bytes'])}"),
        ("rounding", plan["rounding"] + _learning(plan)),
    ]


def _learning(plan: dict[str, Any]) -> str:
    """How long the blocks will be learned, where they are."""
    seconds = plan["reconstruction_seconds"]
    return "" if seconds is None else f", about {format_seconds(seconds)} to learn all blocks"


def _build(
    source: str,
    output_path: Path,
    output: Output,
    choices: dict[str, Any],
    tune: dict[str, Any] | None,
    tune_text: list[Path],
    **arguments: Any,
) -> BuildReceipt:
    with resumable_stops():
        with stops_held_back():
            from pliant.recipes.build import build as build_artifact
            from pliant.recipes.build_options import BuildOptions
            from pliant.recipes.one_for_all import build_tuned
            from pliant.tune import TuneOptions
        options = BuildOptions(**choices)
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
    """The largest error of a learned block at each plane count; nothing where none was learned."""
    found = receipt.block_errors
    if not found:
        return []
    worst = {count: max(error[count] for error in found.values()) for count in found[0]}
    text = "  ".join(f"{count}: {error:.2%}" for count, error in worst.items())
    return [("error of the worst block", f"{text} by planes, mean square")]


def _readable_receipt(receipt: BuildReceipt) -> list[tuple[str, object]]:
    planes = "  ".join(
        f"{count}: {loss / receipt.dense_loss - 1:+.2%}"
        for count, loss in sorted(receipt.plane_losses.items())
    )
    announced = format_bytes(receipt.predicted_bytes)
    return [
        ("artifact", f"{receipt.artifact}, {format_bytes(receipt.artifact_bytes)}"),
        ("parameters", f"{receipt.num_parameters:,}"),
        ("dense loss", f"{receipt.dense_loss:.4f} nats per token of the calibration text"),
        ("loss by planes", planes),
        *map(_quality_line, receipt.receipts),
        *_block_lines(receipt),
        ("depths chosen by", receipt.depth_method),
        ("took", format_seconds(receipt.seconds) + (", resumed" if receipt.was_resumed else "")),
        ("peak memory", f"{format_bytes(receipt.peak_bytes)}, {announced} announced"),
    ]
