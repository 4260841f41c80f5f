"""`pliant pull`: of an artifact on the hub the planes that a cut reads, and no others."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from pliant.artifact import Artifact, FileRecord, Manifest
from pliant.artifact.fewer_planes import reads_at_most, with_fewer_planes
from pliant.artifact.folder import (
    disk_errors,
    free_bytes,
    sha256_inside,
    sync_folder,
    write_atomically,
)
from pliant.artifact.manifest import MANIFEST_FILE, MAX_MANIFEST_BYTES
from pliant.artifact.reader import SUBNETS_FOLDER
from pliant.errors import (
    ArtifactError,
    OutOfSpaceError,
    PliantError,
    UsageError,
    VerificationError,
)
from pliant.evaluate import golden_json, read_golden
from pliant.measurement import Progress, format_bytes, silent
from pliant.recipes.hub.remote import Remote
from pliant.subnet import Subnet

_GOLDEN = "golden.json"
_MAX_SUBNET_BYTES = 16 * 1024 * 1024
#: Bytes of all saved cuts that are fetched, so that a plan stays cheap whatever a hub holds.
_MOST_CUTS_BYTES = 32 * 1024 * 1024
_SUBNET_FILE = re.compile(rf"{SUBNETS_FOLDER}/([A-Za-z0-9][A-Za-z0-9._-]{{0,63}})\.json")


@dataclass(frozen=True)
class PullPlan:
    """What would be fetched: the first `planes` planes of an artifact, and all small files.

    `whole` is the manifest on the hub, `files` the sizes of those that are wanted, `cuts` the
    saved cuts that read no more planes. `here` are names of files that lie in `target` or in an
    unfinished pull already, as far as sizes tell.
    """

    remote: Remote
    target: Path
    cut: str
    planes: int
    whole: Manifest
    text: bytes
    files: Mapping[str, int]
    cuts: Mapping[str, bytes]
    here: frozenset[str] = frozenset()

    @property
    def num_bytes(self) -> int:
        """Bytes of all wanted files."""
        return sum(self.files.values())

    @property
    def whole_bytes(self) -> int:
        """Bytes of all files of the artifact on the hub."""
        return sum(record.size for record in self.whole.files.values())

    @property
    def missing_bytes(self) -> int:
        """Bytes of files that are not here."""
        return sum(size for name, size in self.files.items() if name not in self.here)

    @property
    def partial(self) -> Path:
        """Where files are gathered until all are whole."""
        return self.target.with_name(self.target.name + ".pull")


def plan_pull(
    address: str,
    target: Path,
    *,
    revision: str | None = None,
    endpoint: str | None = None,
    force: bool = False,
) -> PullPlan:
    """Read the description of `owner/name[@cut]` and find which files the cut needs.

    Fetches the manifest and saved cuts only. Raises `UsageError` for a target that exists (unless
    `force` and it is an artifact) or a cut that the artifact has not, `ArtifactError` where the
    repository holds no artifact or one that contradicts itself, `PliantError` where the hub cannot
    be reached.
    """
    repo, _, cut = address.partition("@")
    _check_target(target, force)
    remote = Remote(repo, revision, endpoint)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        text = remote.read(MANIFEST_FILE, place, MAX_MANIFEST_BYTES)
        whole = Manifest.from_json(text)
        _check_sizes(remote, whole)
        contents = {
            name: remote.read(name, place, _MAX_SUBNET_BYTES) for name in _cuts(remote, cut)
        }
        # Without tensors: enough to say what an address means.
        described = Artifact(place, whole, {})
        planes = _planes_of(described, cut, repo) if cut else whole.codec.planes
        cuts = {name: content for name, content in contents.items()
                if _reads(described, name) <= planes}  # fmt: skip
    manifest = with_fewer_planes(whole, planes)
    files = {name: record.size for name, record in manifest.files.items()}
    plan = PullPlan(remote, target, cut, planes, whole, text, files, cuts)
    here = [
        name
        for name, size in files.items()
        if size in (_size(plan.partial / name), _size(target / name))
    ]
    return replace(plan, here=frozenset(here))


def pull(plan: PullPlan, progress: Progress = silent) -> Artifact:
    """Fetch what was planned, check every hash, and put the artifact in its place.

    Interrupted at any point it goes on when run again. Raises `VerificationError` for bytes that
    are not those of the manifest, `OutOfSpaceError` before the first byte where the disk has not
    the room.
    """
    folder, target = plan.partial, plan.target
    free = free_bytes(target.absolute())
    if plan.missing_bytes > free:
        raise OutOfSpaceError(
            f"{target} takes {format_bytes(plan.missing_bytes)} more and {format_bytes(free)} are "
            "free there; make room, or pull fewer planes."
        )
    if folder.is_symlink():
        raise UsageError(f"{folder} is a link; remove it, or give another --output.")
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        count = 0

        def arrived(num_bytes: int) -> None:
            nonlocal count
            count = min(count + num_bytes, plan.num_bytes)
            progress("pulling, kB", count // 1000, plan.num_bytes // 1000)

        for name, size in plan.files.items():
            before = count
            _obtain(plan, name, arrived)
            count = before
            arrived(size)
        _describe(plan)
        Artifact.open(folder).subnet(plan.cut)
        _put(folder, target)
    return Artifact.open(target)


def _check_target(target: Path, force: bool) -> None:
    if target.is_symlink():
        raise UsageError(f"{target} is a link; give the place that it leads to.")
    if not target.exists():
        return
    if not force:
        raise UsageError(
            f"{target} exists already; with --force files that are equal are kept and the others "
            "replaced."
        )
    if not (target / MANIFEST_FILE).is_file():
        raise UsageError(f"{target} is no artifact, so it is not replaced; give another name.")


def _check_sizes(remote: Remote, manifest: Manifest) -> None:
    """What the hub has is what the manifest lists: found out before the first large file."""
    for name, record in manifest.files.items():
        found = remote.sizes.get(name)
        if found != record.size:
            has = "is missing" if found is None else f"has {found} bytes"
            raise ArtifactError(
                f"{name} of {remote.repo} {has}; its manifest says {record.size}. Ask its owner to "
                "push it again."
            )


def _cuts(remote: Remote, wanted: str) -> list[str]:
    """Files of saved cuts to look at: the one that is wanted, then others while they are small."""
    first = f"{SUBNETS_FOLDER}/{wanted}.json"
    names = sorted(name for name in remote.sizes if _SUBNET_FILE.fullmatch(name) and name != first)
    found, room = [], _MOST_CUTS_BYTES
    for name in [first, *names] if first in remote.sizes else names:
        room -= remote.sizes[name]
        if name == first or room >= 0:
            found.append(name)
    return [name for name in found if _SUBNET_FILE.fullmatch(name)]


def _planes_of(described: Artifact, cut: str, repo: str) -> int:
    """Planes that a cut reads; errors speak of the repository."""
    try:
        return described.subnet(cut).bits.most_planes
    except UsageError as error:
        raise UsageError(str(error).replace(str(described.path), repo)) from error


def _reads(described: Artifact, file: str) -> int:
    """Planes that a saved cut reads; more than any where it is damaged."""
    try:
        return described.subnet(Path(file).stem).bits.most_planes
    except PliantError:
        return 1 << 30


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() and not path.is_symlink() else -1


def _is_whole(folder: Path, name: str, record: FileRecord) -> bool:
    place = folder / name
    return _size(place) == record.size and sha256_inside(folder, name) == record.sha256


def _obtain(plan: PullPlan, name: str, arrived: Callable[[int], None]) -> None:
    """One file, from where it is nearest: an unfinished pull, the artifact before, the hub."""
    record, folder = plan.whole.files[name], plan.partial
    if _is_whole(folder, name, record):
        return
    (folder / name).unlink(missing_ok=True)
    if _is_whole(plan.target, name, record):
        _link(plan.target / name, folder / name)
        return
    # Named by its hash, so that nothing is appended to a file of another content.
    part = f".{name}.{record.sha256[:16]}.part"
    plan.remote.fetch(name, folder / part, arrived)
    if not _is_whole(folder, part, record):
        (folder / part).unlink()
        raise VerificationError(
            f"{name} of {plan.remote.repo} is not what its manifest says (SHA-256); it was "
            "removed. Run it again, or ask its owner to push it again."
        )
    (folder / part).rename(folder / name)


def _link(old: Path, new: Path) -> None:
    """The same file under another name, or a copy where the disk knows no links."""
    try:
        os.link(old, new)
    except OSError:
        shutil.copyfile(old, new)


def _describe(plan: PullPlan) -> None:
    """Saved cuts and the manifest, which makes the folder an artifact; nothing else stays."""
    folder, text = plan.partial, plan.text
    if plan.planes < plan.whole.codec.planes:
        text = _fewer(plan)
    for name, content in {**_own_cuts(plan), **plan.cuts}.items():
        write_atomically(folder / name, content)
    for place in folder.iterdir():
        if place.name not in (*plan.files, SUBNETS_FOLDER):
            _remove(place)
    write_atomically(folder / MANIFEST_FILE, text)


def _remove(place: Path) -> None:
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    else:
        place.unlink()


def _fewer(plan: PullPlan) -> bytes:
    """The manifest of fewer planes; golden logits of subnets that read more are left out."""
    changed = {}
    if _GOLDEN in plan.files:
        records = read_golden(plan.partial / _GOLDEN)
        kept = [one for one in records if reads_at_most(one.address, plan.planes)]
        content = golden_json(kept)
        write_atomically(plan.partial / _GOLDEN, content)
        changed[_GOLDEN] = FileRecord(len(content), hashlib.sha256(content).hexdigest())
    return with_fewer_planes(plan.whole, plan.planes, changed).to_json()


def _own_cuts(plan: PullPlan) -> dict[str, bytes]:
    """Cuts saved in the artifact that is replaced, as far as they can be cut from the new one."""
    found: dict[str, bytes] = {}
    if not (plan.target / MANIFEST_FILE).is_file():
        return found
    before = Artifact.open(plan.target)
    for name in before.subnet_names():
        subnet: Subnet = before.subnet(name)
        if subnet.spec == plan.whole.spec and subnet.bits.most_planes <= plan.planes:
            found[f"{SUBNETS_FOLDER}/{name}.json"] = msgspec.json.encode(subnet)
    return found


def _put(folder: Path, target: Path) -> None:
    """Give the finished folder its name; what was there before goes when it has it."""
    old = target.with_name(target.name + ".replaced")
    if target.exists():
        if old.exists():
            shutil.rmtree(old)
        target.rename(old)
    folder.rename(target)
    sync_folder(target.absolute().parent)
    if old.exists():
        shutil.rmtree(old)
