"""`pliant export`: a subnet as a Hugging Face folder or a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
import typer

from pliant.cli.options import Address, DryRun, Json, Quiet, Threads
from pliant.cli.output import Output, facts
from pliant.cli.target import (
    PeerPython,
    Type,
    check_engine,
    emit_report,
    plan_export,
    verified_export,
)
from pliant.measurement import format_bytes, parse_bytes

if TYPE_CHECKING:
    from pliant.export import ExportRecord, GgufPlan, HfPlan

Target = Annotated[
    Literal["hf", "gguf"],
    typer.Option(
        "--to", envvar="PLIANT_TO", metavar="TARGET",
        help="`hf` is a folder for transformers, `gguf` a file for llama.cpp.",
    ),
]  # fmt: skip
ExportPath = Annotated[
    Path,
    typer.Option(
        "--output", "-o", envvar="PLIANT_OUTPUT", metavar="PATH",
        help="The folder or file to write.",
    ),
]  # fmt: skip
Pad = Annotated[
    bool,
    typer.Option(
        "--pad/--no-pad", envvar="PLIANT_PAD",
        help="Fill up with zeros what the target cannot hold as it is, or refuse it.",
    ),
]  # fmt: skip
ShardSize = Annotated[
    int,
    typer.Option(
        "--shard-size", envvar="PLIANT_SHARD_SIZE", parser=parse_bytes, metavar="SIZE",
        help="hf: most bytes of one file of weights.",
    ),
]  # fmt: skip
Verify = Annotated[
    bool,
    typer.Option(
        "--verify/--no-verify",
        envvar="PLIANT_VERIFY",
        help="Compare tokens, logits and greedy texts in the target's engine afterwards.",
    ),
]
Force = Annotated[
    bool,
    typer.Option("--force", envvar="PLIANT_FORCE", help="Replace an export that exists."),
]


def export(
    address: Address,
    output_path: ExportPath,
    target: Target = "hf",
    kind: Type = None,
    pad: Pad = True,
    shard_size: ShardSize = "4GB",  # type: ignore[assignment]
    force: Force = False,
    verify: Verify = True,
    peer_python: PeerPython = None,
    threads: Threads = None,
    dry_run: DryRun = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a subnet for other engines, its weights as the planes that are read stand for."""
    from pliant.artifact import Artifact, split_address
    from pliant.export.target import check_target

    output = Output(as_json, quiet)
    path, cut = split_address(address)
    check_target(output_path, is_folder=target == "hf", force=force)
    plan = plan_export(Artifact.open(path), cut, target, kind, pad, shard_size)
    for note in plan.notes:
        output.note(f"note: {note}")
    if dry_run:
        fields = {"output": str(output_path), "num_bytes": plan.num_bytes, "notes": plan.notes}
        output.emit(fields, facts(_plan_lines(plan, output_path)))
        return
    output.note(f"writing {format_bytes(plan.num_bytes)} to {output_path}")
    if verify:
        check_engine(target, peer_python)
    record = write_export(plan, cut, output_path, output, force)
    fields = {"output": str(output_path), **msgspec.to_builtins(record), "notes": plan.notes}
    if not verify:
        output.emit(fields, facts(_lines(record, output_path)))
        return
    report = verified_export(path, cut, target, output_path, kind, peer_python, threads, output)
    emit_report(report, output, fields, facts(_lines(record, output_path)))


def write_export(
    plan: HfPlan | GgufPlan, cut: str, path: Path, output: Output, force: bool
) -> ExportRecord:
    """Write what was planned, with a bar."""
    from pliant.export import HfPlan, export_gguf, export_hf

    with output.progress() as progress:
        if isinstance(plan, HfPlan):
            return export_hf(plan, cut, path, force=force, progress=progress)
        return export_gguf(plan, cut, path, force=force, progress=progress)


def _plan_lines(plan: HfPlan | GgufPlan, path: Path) -> list[tuple[str, object]]:
    return [("would write", path), ("on disk", f"at most {format_bytes(plan.num_bytes)}"),
            ("stored as", plan.storage)]  # fmt: skip


def _lines(record: ExportRecord, path: Path) -> list[tuple[str, object]]:
    return [
        ("written", path),
        ("parameters", f"{record.num_parameters:,}"),
        ("weights", f"{format_bytes(record.weight_bytes)} as {record.storage}, "
                    f"{format_bytes(record.subnet_bytes)} in the artifact"),
    ]  # fmt: skip
