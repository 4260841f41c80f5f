"""Files that may lie beside a model and that nobody vouches for."""

from __future__ import annotations

from pathlib import Path

from pliant.errors import CheckpointError


def is_there(path: Path) -> bool:
    """Whether `path` is a regular file, or a link to one; False where there is nothing.

    `CheckpointError` for a folder, and for pipes and devices, which a reader would wait for.
    """
    if path.is_file():
        return True
    if path.exists():
        raise CheckpointError(f"{path} is not a regular file; copy it again from its source.")
    return False
