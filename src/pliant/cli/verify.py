"""`pliant verify`: sizes, hashes, ranges and golden logits of an artifact."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from pliant.cli.options import ArtifactPath, Json, Quiet, Threads
from pliant.cli.output import Output, facts
from pliant.measurement import Progress, format_bytes

if TYPE_CHECKING:
    from pliant.evaluate import Activations, GoldenCheck
    from pliant.runtime import TokenModel

Shallow = Annotated[
    bool,
    typer.Option(
        "--shallow", envvar="PLIANT_SHALLOW", help="Structure and sizes only; reads no weights."
    ),
]


def verify(
    artifact: ArtifactPath,
    shallow: Shallow = False,
    threads: Threads = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Check an artifact against its own receipts: sizes, hashes, ranges and golden logits."""
    from pliant.artifact import verify as verify_files

    output = Output(as_json, quiet)
    with output.progress() as progress:
        found = verify_files(artifact, deep=not shallow, progress=progress)
        golden = [] if shallow else _verify_golden(artifact, threads, progress)
    fields = {
        "artifact": str(artifact),
        "verified": True,
        "deep": not shallow,
        "files": msgspec.to_builtins(found),
        "golden": msgspec.to_builtins(golden),
    }
    read = "structure and sizes" if shallow else "structure, sizes, hashes and values"
    output.emit(
        fields,
        facts(
            [
                ("artifact", artifact),
                ("files", f"{found.files} with {format_bytes(found.num_bytes)}: {read} hold"),
                ("golden logits", _golden_line(golden)),
            ]
        ),
    )


def _verify_golden(path: Path, threads: int | None, progress: Progress) -> list[GoldenCheck]:
    from pliant.evaluate import verify_golden
    from pliant.runtime.text_engine import open_artifact

    with open_artifact(path) as model:

        @contextmanager
        def open_model(address: str, activations: Activations) -> Iterator[TokenModel]:
            with model.engine(address, threads=threads, activations=activations) as engine:
                yield engine.engine

        kernels = model.engine().engine.kernels
        return verify_golden(path / "golden.json", open_model, kernels, progress)


def _golden_line(golden: list[GoldenCheck]) -> str:
    if not golden:
        return "not checked"
    prompts = sum(check.prompts for check in golden)
    if all(check.bitwise for check in golden):
        return f"{prompts} prompts, equal in every bit"
    nearest = max(golden, key=lambda check: check.worst / check.tolerance)
    return (
        f"{prompts} prompts, within {nearest.worst:.2%} of their RMS "
        f"({nearest.tolerance:.2%} allowed)"
    )
