"""`mapped`: the bytes of a model file from anywhere, without reading them."""

from __future__ import annotations

import mmap
from pathlib import Path

from pliant.errors import CheckpointError
from pliant.runtime.side_file import is_there


def mapped(path: Path) -> mmap.mmap:
    """The content of a file; `CheckpointError` where there is none, or something else than one."""
    if not is_there(path):
        raise CheckpointError(f"There is no file {path}; give the path of a model.")
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}.") from error
