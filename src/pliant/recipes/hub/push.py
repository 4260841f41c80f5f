"""`pliant push`: an artifact as one commit of a repository of the hub."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pliant.artifact import Artifact, verify
from pliant.artifact.manifest import MANIFEST_FILE
from pliant.artifact.reader import SUBNETS_FOLDER
from pliant.artifact.tensors import plane_file
from pliant.measurement import Progress, format_bytes, silent
from pliant.recipes.hub.remote import hub_errors

CARD = "README.md"


@dataclass(frozen=True)
class PushPlan:
    """What would be uploaded: the sizes of the files of `artifact` by their path in `repo`.

    Studies stay here: they name machines, and can be measured again.
    """

    artifact: Artifact
    repo: str
    files: Mapping[str, int]

    @property
    def num_bytes(self) -> int:
        """Bytes of all files; the hub takes no file twice, so fewer may travel."""
        return sum(self.files.values())


def plan_push(path: Path, repo: str) -> PushPlan:
    """The files that the manifest lists, the manifest, and saved cuts; nothing else of the folder.

    Raises `ArtifactError` where the artifact is damaged. Asks no network.
    """
    artifact = Artifact.open(path)
    names = [MANIFEST_FILE, *artifact.manifest.files]
    for cut in artifact.subnet_names():
        artifact.subnet(cut)
        names.append(f"{SUBNETS_FOLDER}/{cut}.json")
    return PushPlan(artifact, repo, {name: (path / name).stat().st_size for name in names})


def push(
    plan: PushPlan,
    *,
    private: bool = False,
    revision: str | None = None,
    endpoint: str | None = None,
    message: str | None = None,
    progress: Progress = silent,
) -> str:
    """Verify every byte, then upload all files as one commit; returns the address of the commit.

    The repository is made where there is none, `private` or not. A card is written where the
    repository has none, and never replaced. An upload that was cut off goes on when run again: the
    hub keeps large files it has taken, and shows none of them before the commit. Raises
    `VerificationError` for a damaged artifact, `PliantError` for what the hub refuses.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    path = plan.artifact.path
    verify(path, progress=progress)
    with hub_errors(plan.repo):
        api = HfApi(endpoint=endpoint)
        api.create_repo(plan.repo, private=private, exist_ok=True)
        operations = [CommitOperationAdd(name, path / name) for name in plan.files]
        if not api.file_exists(plan.repo, CARD, revision=revision):
            operations.append(CommitOperationAdd(CARD, card(plan).encode()))
        commit = api.create_commit(
            plan.repo,
            operations,
            commit_message=message or f"Push {path.resolve().name} with pliant",
            revision=revision,
        )
    return commit.commit_url


def card(plan: PushPlan) -> str:
    """A first README.md: what this is, what each number of planes weighs, how to fetch it."""
    artifact = plan.artifact
    manifest, full = artifact.manifest, artifact.subnet()
    # A name is any text; as JSON it cannot break out of its line of the header.
    source = json.dumps(manifest.source.name)
    shown = " ".join(manifest.source.name.replace("`", "'").split())
    planes = {plane_file(place) for place in range(artifact.num_planes)}
    size = sum(size for name, size in plan.files.items() if name not in planes)
    rows = []
    for count in range(1, artifact.num_planes + 1):
        size += plan.files[plane_file(count - 1)]
        rows.append(f"| {count} | {format_bytes(size)} | `pliant pull {plan.repo}@b{count}` |")
    return "\n".join(
        [
            "---", "library_name: pliant", "pipeline_tag: text-generation",
            f"base_model: {source}", "tags: [pliant]", "---", "", f"# {plan.repo}", "",
            f"A pliant artifact of `{shown}`: {full.num_parameters:,} parameters as "
            f"{artifact.num_planes} nested bit-planes, of which a download takes as many as a "
            "device needs. Any depth, width and number of bits is a cut of it.", "",
            "| planes | download | |", "|---:|---:|---|", *rows, "",
            f"    pliant pull {plan.repo} -o model.pliant",
            '    pliant run model.pliant "Once upon a time"', "",
        ]
    )  # fmt: skip
