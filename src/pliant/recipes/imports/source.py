"""`as_checkpoint`: whatever a build is given as the checkpoint it reads."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pliant.export.target import write_errors
from pliant.measurement import Progress, silent
from pliant.recipes.imports.gguf_folder import gguf_folder
from pliant.recipes.imports.llama2c import llama2c_folder

#: What makes a folder of a file, by the ending of its name.
READERS = {".gguf": gguf_folder, ".bin": llama2c_folder}


@contextmanager
def as_checkpoint(
    source: str, output: Path, lora: Path | None = None, progress: Progress = silent
) -> Iterator[str]:
    """`source`, or a folder `OUTPUT.source/NAME` that is made of it for the time of the block.

    Made are a folder of a file that `READERS` know, and one with the adapter `lora` merged. It is
    removed when the block ends. A build that was interrupted and goes on makes it again with the
    same bytes, so it is taken up where it was. Raises what the readers and `merged_folder` raise.
    """
    path = Path(source)
    read = READERS.get(path.suffix) if path.is_file() else None
    if read is None and lora is None:
        yield source
        return
    scratch = output.with_name(output.name + ".source")
    with write_errors(scratch):
        shutil.rmtree(scratch, ignore_errors=True)
    try:
        with write_errors(scratch):
            if read is not None:
                source = str(read(path, scratch / path.stem, progress))
            if lora is not None:
                # Needs torch, which reading a GGUF file does not.
                from pliant.recipes.imports.lora import merged_folder

                merged = scratch / f"{path.stem}-{lora.resolve().name}"
                source = str(merged_folder(source, lora, merged, progress))
        yield source
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
