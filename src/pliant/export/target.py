"""The file or folder that an export writes: refused, made beside, and renamed when it is whole."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pliant.artifact.folder import free_bytes, free_text
from pliant.errors import OutOfSpaceError, PliantError, UsageError
from pliant.measurement import format_bytes

#: Lies in every exported folder: how it was made, and the mark that it may be replaced.
RECORD_FILE = "pliant_export.json"


@contextmanager
def new_target(path: Path, num_bytes: int, *, is_folder: bool, force: bool) -> Iterator[Path]:
    """A place beside `path` to write `num_bytes` to; it takes the name `path` when all went well.

    `UsageError` where `path` exists and `force` is not given, or is something that no export
    wrote; `OutOfSpaceError` before the first byte where the disk has not the room.
    """
    check_target(path, is_folder=is_folder, force=force)
    free = free_bytes(path)
    if num_bytes > free:
        raise OutOfSpaceError(
            f"{path} takes {format_bytes(num_bytes)} and {format_bytes(free)} are free there; make "
            "room, export a smaller cut, or store fewer bits."
        )
    partial = path.with_name(path.name + ".partial")
    with write_errors(path):
        _remove(partial)
        (partial if is_folder else partial.parent).mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            if path.is_dir():
                shutil.rmtree(path)
            partial.replace(path)
        finally:
            _remove(partial)


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Turn what the system says about writing `path`, all or nothing, into an error of pliant."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutOfSpaceError(
                f"The disk is full while writing {path}: {free_text(path)}. Nothing of it was "
                "kept, and what was there before is whole; make room and run it again."
            ) from error
        raise PliantError(
            f"{path} cannot be written: {error.strerror or error}; check its permissions."
        ) from error


def check_target(path: Path, *, is_folder: bool, force: bool) -> None:
    """Raise `UsageError` where `path` may not be written."""
    if path.is_symlink():
        raise UsageError(f"{path} is a link; give the place that it leads to.")
    if not path.exists():
        return
    if not force:
        raise UsageError(f"{path} exists already; give --force to replace it, or another name.")
    ours = path.is_dir() and (not any(path.iterdir()) or (path / RECORD_FILE).is_file())
    if is_folder and not ours:
        raise UsageError(
            f"{path} was not written by an export, so --force does not replace it; remove it "
            "yourself, or give another name."
        )
    if not is_folder and not path.is_file():
        raise UsageError(f"{path} is not a file, so it is not replaced; give another name.")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
