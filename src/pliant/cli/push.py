"""`pliant push`: an artifact to the hub."""

from __future__ import annotations

from typing import Annotated

import typer

from pliant.cli.options import ArtifactPath, DryRun, Json, Quiet
from pliant.cli.output import Output, facts, table
from pliant.cli.pull import Endpoint, Revision
from pliant.measurement import format_bytes

Repo = Annotated[
    str, typer.Argument(metavar="OWNER/NAME", help="A repository; made where there is none.")
]
Private = Annotated[
    bool,
    typer.Option("--private", envvar="PLIANT_PRIVATE", help="A new repository is not public."),
]
Message = Annotated[
    str | None,
    typer.Option(
        "--message", "-m", envvar="PLIANT_MESSAGE", metavar="TEXT", help="What the commit says."
    ),
]


def push(
    artifact: ArtifactPath,
    repo: Repo,
    private: Private = False,
    revision: Revision = None,
    message: Message = None,
    endpoint: Endpoint = None,
    dry_run: DryRun = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Verify an artifact and upload it as one commit; run again it goes on where it was cut off.

    Uploaded are the files of the manifest and saved cuts; studies, which name your machines, and
    other files of the folder are not. Log in with `hf auth login`.
    """
    from pliant.recipes.hub import plan_push
    from pliant.recipes.hub import push as upload

    output = Output(as_json, quiet)
    plan = plan_push(artifact, repo)
    fields = {"repo": repo, "num_bytes": plan.num_bytes, "files": dict(plan.files)}
    if dry_run:
        rows = [(name, format_bytes(size)) for name, size in plan.files.items()]
        output.emit(
            fields,
            table(f"{artifact} to {repo}", ("file", ">size"), rows),
            f"{len(plan.files)} files, {format_bytes(plan.num_bytes)}",
        )
        return
    output.note(f"{len(plan.files)} files, {format_bytes(plan.num_bytes)}, to {repo}")
    with output.progress() as progress:
        url = upload(plan, private=private, revision=revision, endpoint=endpoint, message=message,
                     progress=progress)  # fmt: skip
    lines = [("pushed", url), ("files", f"{len(plan.files)}, {format_bytes(plan.num_bytes)}")]
    output.emit({**fields, "commit": url}, facts(lines))
