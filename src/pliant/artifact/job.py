"""`BuildJob`: the folder `X.pliant.partial` in which an artifact grows until it is published.

X.pliant.partial/state.json   fingerprint of all inputs, and the tensors known to be on disk
X.pliant.partial/stages/      results of earlier stages, kept for a resumed build
X.pliant.partial/artifact/    what will be renamed to X.pliant
X.pliant.partial/replaced/    the X.pliant that is being replaced, for the instant of renaming
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from pathlib import Path
from types import TracebackType

import msgspec

from pliant.artifact.folder import disk_errors, sync_folder, write_atomically
from pliant.artifact.manifest import MANIFEST_FILE
from pliant.errors import ArtifactError, UsageError

_STAGE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class JobState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `state.json` holds: the inputs by their hash, and finished tensors by name."""

    fingerprint: str
    done: tuple[str, ...] = ()


class BuildJob:
    """One build in progress; at most one process holds it.

    A job begun from the same inputs is taken up where it was; of other inputs it is refused, or
    begun anew with `replace`. Removing the folder is always safe.
    """

    def __init__(self, target: Path, fingerprint: str, replace: bool) -> None:
        """Take up or begin the job of `target`; `UsageError` where that must not be done."""
        self.target = target
        self.folder = target.with_name(target.name + ".partial")
        self.artifact = self.folder / "artifact"
        self._replaced = self.folder / "replaced"
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._take_up(fingerprint, replace)
        except BaseException:
            self.close()
            raise

    def _take_up(self, fingerprint: str, replace: bool) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UsageError(
                f"Another process is building {self.target}; wait for it or end it."
            ) from error
        with disk_errors(self.folder):
            self._recover()
            state = self._read_state()
            if state is None or not self.artifact.exists():
                # Killed before the first state, or after publishing: nothing here is of use.
                self._clear()
            elif state.fingerprint != fingerprint and not replace:
                raise UsageError(
                    f"{self.folder} was begun from other inputs. Remove it or start anew with "
                    "--force; to go on with it, give the inputs it was begun with."
                )
            elif state.fingerprint != fingerprint:
                self._clear()
            self._check_target(replace)
            self.is_resumed = self.artifact.exists()
            self.artifact.mkdir(exist_ok=True)
        self.state = state if self.is_resumed and state else JobState(fingerprint)

    def _recover(self) -> None:
        """Finish or undo a replacement that was cut short between its two renames."""
        if not os.path.lexists(self._replaced):
            return
        if os.path.lexists(self.target):
            _remove(self._replaced)
        else:
            self._replaced.rename(self.target)

    def _read_state(self) -> JobState | None:
        try:
            return msgspec.json.decode((self.folder / "state.json").read_bytes(), type=JobState)
        except (FileNotFoundError, msgspec.DecodeError):
            return None

    def _check_target(self, replace: bool) -> None:
        """Refuse to overwrite what was not asked for, and what is no artifact."""
        if not os.path.lexists(self.target):
            return
        if not replace:
            self._remove_if_unused()
            raise UsageError(
                f"{self.target} exists already; choose another name, or replace it with --force."
            )
        if not (self.target / MANIFEST_FILE).is_file():
            self._remove_if_unused()
            raise UsageError(
                f"{self.target} exists and is not an artifact, so it will not be replaced; "
                "choose another name."
            )

    def _remove_if_unused(self) -> None:
        if not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _clear(self) -> None:
        """Remove what is in the folder; the folder itself is what the lock is on."""
        for path in sorted(self.folder.iterdir()):
            _remove(path)

    def record(self, done: tuple[str, ...]) -> None:
        """Remember that these tensors are on disk; they must have been synced before."""
        self.state = JobState(self.state.fingerprint, done)
        write_atomically(self.folder / "state.json", msgspec.json.encode(self.state))

    def save_stage(self, name: str, result: bytes) -> None:
        """Keep the result of a stage of the build until the artifact is published."""
        write_atomically(self._stage(name), result)

    def load_stage(self, name: str) -> bytes | None:
        """What `save_stage` kept under `name` in this or an interrupted run."""
        path = self._stage(name)
        return path.read_bytes() if path.exists() else None

    def _stage(self, name: str) -> Path:
        if not _STAGE_NAME.fullmatch(name):
            raise ValueError(f"{name!r} cannot name a stage.")
        return self.folder / "stages" / name

    def publish(self) -> None:
        """Rename the finished artifact to its target, in place of what was there, and clean up.

        At every instant the old artifact or the new one is there in whole; where a kill falls
        between the two renames, the next run of the job puts the old one back first.
        """
        with disk_errors(self.target):
            sync_folder(self.artifact)
            if os.path.lexists(self.target):
                self.target.rename(self._replaced)
            self.artifact.rename(self.target)
            sync_folder(self.target.parent)
            self._clear()
            self.folder.rmdir()

    def close(self) -> None:
        """Let go of the job, leaving it for another run."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> BuildJob:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _remove(path: Path) -> None:
    """Remove a file, a link (not what it leads to) or a folder with all it holds."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def require_artifact_name(path: Path) -> None:
    """`UsageError` where a path cannot become an artifact."""
    if not path.name or path.name.endswith(".partial"):
        raise UsageError(f"{path} cannot name an artifact; write a name such as X.pliant.")
    if "@" in path.name:
        raise UsageError(f"{path.name!r} holds an '@', which addresses use; leave it out.")
    if path.parent.exists() and not path.parent.is_dir():
        raise ArtifactError(f"{path.parent} is not a folder.")
