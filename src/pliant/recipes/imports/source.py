"""`as_checkpoint`: whatever a build is given as the checkpoint it reads."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pliant.artifact.folder import disk_errors
from pliant.measurement import Progress, silent
from pliant.recipes.imports.gguf_folder import gguf_folder


@contextmanager
def as_checkpoint(source: str, output: Path, progress: Progress = silent) -> Iterator[str]:
    """`source`, or for a GGUF file the folder `OUTPUT.source/NAME` that is made of it meanwhile.

    The folder is removed when the block ends. A build that was interrupted and goes on makes it
    again with the same bytes, so it is taken up where it was. Raises what `gguf_folder` raises.
    """
    path = Path(source)
    if path.suffix != ".gguf" or not path.is_file():
        yield source
        return
    scratch = output.with_name(output.name + ".source")
    with disk_errors(scratch):
        shutil.rmtree(scratch, ignore_errors=True)
        try:
            yield str(gguf_folder(path, scratch / path.stem, progress))
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
