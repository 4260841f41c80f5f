"""Opening the files of an artifact, none of which is trusted."""

from __future__ import annotations

import errno
import hashlib
import json
import mmap
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from pliant.errors import ArtifactError, OutOfSpaceError
from pliant.measurement import format_bytes

_PIECE_BYTES = 1 << 20


@contextmanager
def open_inside(folder: Path, name: str) -> Iterator[BinaryIO]:
    """A regular file of `folder`, opened to read; `ArtifactError` for anything else.

    Refused are links that lead out of the folder, and pipes and devices, which could block or
    never end.
    """
    path = folder / name
    try:
        if not path.resolve(strict=True).is_relative_to(folder.resolve(strict=True)):
            raise ArtifactError(f"{path} is a link that leads out of the artifact; copy the file.")
        # Opening a pipe would wait for a writer without O_NONBLOCK.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, RuntimeError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ArtifactError(f"{path} cannot be read: {reason}.") from error
    # Before it becomes a file object, which refuses folders in its own words.
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ArtifactError(f"{path} is not a regular file.")
    try:
        with os.fdopen(descriptor, "rb", buffering=0) as file:
            yield file
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror or error}.") from error


def file_size(folder: Path, name: str) -> int:
    """Bytes of a file of `folder`."""
    with open_inside(folder, name) as file:
        return os.fstat(file.fileno()).st_size


def read_inside(folder: Path, name: str, most_bytes: int) -> bytes:
    """The content of a file of at most `most_bytes` bytes."""
    with open_inside(folder, name) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most_bytes:
            raise ArtifactError(
                f"{folder / name} is {size} bytes long; at most {most_bytes} are allowed."
            )
        # A raw read may return less than asked for.
        pieces = []
        while size > 0 and (piece := file.read(size)):
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)


def json_object(content: bytes, path: Path) -> dict[str, Any]:
    """The object in the content of the small file `path`; `ArtifactError` where it is none."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(
            f"{path} is not readable JSON: {error}. Copy or build the artifact again."
        ) from error
    if not isinstance(found, dict):
        raise ArtifactError(
            f"{path} holds a {type(found).__name__} where an object is expected. Copy or build the "
            "artifact again."
        )
    return found


def map_inside(folder: Path, name: str, size: int) -> NDArray[np.uint8]:
    """The content of a file of exactly `size` bytes as a read-only array over its mapping.

    The size is checked once: a file that is shortened while it is mapped faults when it is read,
    as with any mapping.
    """
    with open_inside(folder, name) as file:
        found = os.fstat(file.fileno()).st_size
        if found != size or found == 0:
            raise ArtifactError(
                f"{folder / name} is {found} bytes long; the manifest says {size}. "
                "It is truncated or was changed; copy or build the artifact again."
            )
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)


def sha256_inside(folder: Path, name: str) -> str:
    """Hex SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with open_inside(folder, name) as file:
        while piece := file.read(_PIECE_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def sync_folder(folder: Path) -> None:
    """Make created, renamed and removed names of a folder survive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file as a whole: readers see the old content or the new, also after a crash.

    Creates the parent folder. `OutOfSpaceError` and `ArtifactError` where it cannot be written.
    """
    with disk_errors(path):
        if path.parent.is_symlink():
            raise ArtifactError(f"{path.parent} is a link; pliant writes only into real folders.")
        path.parent.mkdir(exist_ok=True)
        temporary = path.with_name(f".{path.name}.new")
        temporary.unlink(missing_ok=True)
        # Exclusive, so that a link planted under the temporary name is never written through.
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        temporary.replace(path)
        sync_folder(path.parent)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn what the system says about writing `path` into an error of pliant."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutOfSpaceError(
                f"The disk is full while writing {path}: {free_text(path)}. What was written "
                "stays; make room and run the same command again."
            ) from error
        raise ArtifactError(f"{path} cannot be written: {error.strerror or error}.") from error


def free_bytes(path: Path) -> int:
    """Bytes that may still be written where `path` is or will be."""
    while not path.exists() and path != path.parent:
        path = path.parent
    disk = os.statvfs(path)
    return disk.f_bavail * disk.f_frsize


def free_text(path: Path) -> str:
    """`1.2 MB are free`, or that this is not known."""
    try:
        return f"{format_bytes(free_bytes(path))} are free"
    except OSError:
        return "how much is free is not known"
