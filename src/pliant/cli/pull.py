"""`pliant pull`: the part of an artifact on the hub that a cut reads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pliant.cli.options import DryRun, Json, Quiet
from pliant.cli.output import Output, facts, table
from pliant.measurement import format_bytes

if TYPE_CHECKING:
    from pliant.recipes.hub import PullPlan

RepoAddress = Annotated[
    str,
    typer.Argument(
        metavar="OWNER/NAME[@CUT]",
        help="A repository of the hub; with a cut only the planes that it reads.",
    ),
]
PullPath = Annotated[
    Path,
    typer.Option(
        "--output", "-o", envvar="PLIANT_OUTPUT", metavar="X.pliant", help="The artifact to write."
    ),
]
Revision = Annotated[
    str | None,
    typer.Option(
        "--revision", envvar="PLIANT_REVISION", metavar="NAME", help="Branch, tag or commit (main)."
    ),
]
Endpoint = Annotated[
    str | None,
    typer.Option(
        "--endpoint",
        envvar="PLIANT_ENDPOINT",
        metavar="URL",
        help="Another server with the hub's interface (HF_ENDPOINT).",
    ),
]
Force = Annotated[
    bool,
    typer.Option(
        "--force",
        envvar="PLIANT_FORCE",
        help="Replace an artifact that exists; equal files and saved cuts are kept.",
    ),
]


def pull(
    address: RepoAddress,
    output_path: PullPath,
    revision: Revision = None,
    endpoint: Endpoint = None,
    force: Force = False,
    dry_run: DryRun = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Fetch an artifact, or the planes of it that a cut reads; interrupted it goes on.

    What arrives is an artifact of fewer planes, of which every cut of no more planes can be
    taken. Sizes are shown first; every file is compared with its hash.
    """
    from pliant.recipes.hub import plan_pull
    from pliant.recipes.hub import pull as fetch

    output = Output(as_json, quiet)
    plan = plan_pull(address, output_path, revision=revision, endpoint=endpoint, force=force)
    fields = _fields(plan)
    if dry_run:
        output.emit(fields, _files(plan), _sizes(plan))
        return
    output.note(_sizes(plan))
    with output.progress() as progress:
        artifact = fetch(plan, progress)
    cuts = ", ".join(artifact.subnet_names()) or "none"
    lines = [
        ("written", f"{output_path}, {format_bytes(artifact.num_bytes)}"),
        ("planes", f"{artifact.num_planes} of {plan.whole.codec.planes}"),
        ("saved cuts", cuts),
    ]
    output.emit(fields, facts(lines))


def _fields(plan: PullPlan) -> dict[str, object]:
    return {
        "output": str(plan.target),
        "commit": plan.remote.commit,
        "planes": plan.planes,
        "stored_planes": plan.whole.codec.planes,
        "num_bytes": plan.num_bytes,
        "missing_bytes": plan.missing_bytes,
        "whole_bytes": plan.whole_bytes,
        "files": dict(plan.files),
        "cuts": sorted(Path(name).stem for name in plan.cuts),
    }


def _sizes(plan: PullPlan) -> str:
    here = plan.num_bytes - plan.missing_bytes
    kept = f", {format_bytes(here)} of it here already" if here else ""
    return (
        f"{plan.planes} of {plan.whole.codec.planes} planes: {format_bytes(plan.num_bytes)} of "
        f"{format_bytes(plan.whole_bytes)}{kept}"
    )


def _files(plan: PullPlan) -> object:
    rows = [
        (name, format_bytes(size), "here" if name in plan.here else "to fetch")
        for name, size in plan.files.items()
    ]
    return table(f"{plan.remote.repo} at {plan.remote.commit[:12]}", ("file", ">size", ""), rows)
