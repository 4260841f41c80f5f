"""Files that may lie beside a model and that nobody vouches for."""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path

from pliant.errors import CheckpointError


def is_there(path: Path, listed: Container[str] | None = None) -> bool:
    """Whether `path` is a regular file, or a link to one; False where there is nothing.

    With `listed` a file of another name is not there, whatever lies in its place.
    `CheckpointError` for a folder, and for pipes and devices, which a reader would wait for.
    """
    if listed is not None and path.name not in listed:
        return False
    if path.is_file():
        return True
    if path.exists():
        raise CheckpointError(f"{path} is not a regular file; copy it again from its source.")
    return False
