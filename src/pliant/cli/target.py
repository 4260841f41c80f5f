"""What `export` and `verify --in` share: planning an export, its engine, and the table of both."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from pliant.cli.output import Output, facts, table
from pliant.errors import UsageError

if TYPE_CHECKING:
    from pliant.artifact import Artifact
    from pliant.export import GgufPlan, HfPlan
    from pliant.recipes.verify_target import PromptCheck, TargetReport

Type = Annotated[
    str | None,
    typer.Option(
        "--type",
        envvar="PLIANT_TYPE",
        metavar="TYPE",
        help="hf: bf16 (default), fp16 or fp32; gguf: `exact` (default: the smallest type that "
        "holds each matrix), F32, F16, BF16, Q8_0, Q5_0, Q4_0, Q5_1, Q4_1, Q6_K, Q5_K or Q4_K.",
    ),
]
PeerPython = Annotated[
    str | None,
    typer.Option(
        "--peer-python",
        envvar="PLIANT_PEER_PYTHON",
        metavar="PYTHON",
        help="An interpreter that has the target's engine, used where this one lacks it.",
    ),
]


def plan_export(
    artifact: Artifact,
    cut: str,
    target: str,
    kind: str | None,
    pad: bool = True,
    shard_bytes: int | None = None,
) -> HfPlan | GgufPlan:
    """What will be written; `UnsupportedError` where the target cannot hold the subnet."""
    from pliant.export import SHARD_BYTES, import_gguf, parse_number_type, plan_gguf, plan_hf

    if target == "hf":
        dtype = parse_number_type(kind or "bf16")
        return plan_hf(artifact, cut, dtype, pad=pad, shard_bytes=shard_bytes or SHARD_BYTES)
    import_gguf()
    return plan_gguf(artifact, cut, kind or "exact", pad=pad)


def check_engine(target: str, python: str | None) -> None:
    """`UsageError` before any work where the engine of a target is neither here nor named."""
    from pliant.export.target_engine import missing_engine

    reason = None if python else missing_engine(target)
    if reason:
        raise UsageError(reason)


def verified_export(
    path: Path,
    cut: str,
    target: str,
    at: Path | None,
    kind: str | None,
    python: str | None,
    threads: int | None,
    output: Output,
    text: Path | None = None,
) -> TargetReport:
    """The comparison of the export `at`, or of one made for it, with the artifact `path`.

    `text` is a file whose perplexity is compared too.
    """
    from pliant.artifact import Artifact
    from pliant.data import read_documents
    from pliant.export import export_gguf, export_hf, storage_of
    from pliant.export.hf_folder import HfPlan
    from pliant.recipes.verify_target import verify_target

    artifact = Artifact.open(path)
    documents = {} if text is None else {text.name: read_documents(text)}
    with tempfile.TemporaryDirectory(prefix="pliant-") as folder, output.progress() as progress:
        place = at or Path(folder) / "export"
        if at is None:
            plan = plan_export(artifact, cut, target, kind)
            if isinstance(plan, HfPlan):
                export_hf(plan, cut, place, progress=progress)
            else:
                export_gguf(plan, cut, place, progress=progress)
        return verify_target(
            artifact, cut, target, place, storage_of(target, place),
            documents=documents, python=python, threads=threads or 1, progress=progress,
        )  # fmt: skip


def emit_report(
    report: TargetReport, output: Output, fields: dict[str, Any], *before: object
) -> None:
    """Print the comparison; `VerificationError` after it where it failed."""
    from pliant.recipes.verify_target import require

    fields = {**fields, "verified": not report.failures, "comparison": msgspec.to_builtins(report)}
    columns = ("prompt", ">tokens", "ids", ">logits differ", ">KL nats", ">top-1",
               ">perplexity", ">there", "greedy")  # fmt: skip
    lines = [
        ("engine", report.engine),
        ("allowed", f"logits may differ by {report.tolerance:.2%} of their RMS"),
        *((f"not {name}", reason) for name, reason in report.skipped.items()),
    ]
    output.emit(
        fields, *before, facts(lines), table("", columns, map(_row, report.prompts))
    )  # fmt: skip
    require(report)


def _row(prompt: PromptCheck) -> tuple[str, ...]:
    same = {None: "", True: "equal", False: "DIFFERENT"}[prompt.same_ids]
    greedy = f"{prompt.greedy} of {prompt.greedy_asked}" if prompt.greedy_asked else ""
    if prompt.greedy < prompt.greedy_asked:
        greedy += f", then {prompt.greedy_gap:.2g} apart"
    return (
        prompt.name, str(prompt.tokens), same, f"{prompt.worst:.3%}", f"{prompt.kl_nats:.2g}",
        f"{prompt.top1:.1%}", perplexity_text(prompt.perplexity),
        perplexity_text(prompt.their_perplexity), greedy,
    )  # fmt: skip


def perplexity_text(value: float | None) -> str:
    """A perplexity with digits enough to see two apart; nothing where there is none."""
    return "" if value is None else f"{value:.5g}"
