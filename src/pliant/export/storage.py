"""How the weights of an export are stored, read from the export itself."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import msgspec

from pliant.errors import UsageError
from pliant.export.gguf_file import import_gguf
from pliant.export.record import ExportRecord
from pliant.export.target import RECORD_FILE


def storage_of(target: str, path: Path) -> str:
    """The number type of a folder, or the types of a GGUF file with their counts.

    `UsageError` for a path that is no export.
    """
    try:
        if target == "hf":
            text = (path / RECORD_FILE).read_bytes()
            return msgspec.json.decode(text, type=ExportRecord).storage
        tensors = import_gguf().GGUFReader(path).tensors
        counts = Counter(one.tensor_type.name for one in tensors if len(one.shape) == 2)
        return ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
    except (OSError, ValueError, RecursionError, IndexError, KeyError) as error:
        raise UsageError(
            f"{path} is not what `pliant export --to {target}` wrote: {error}. Give --at the "
            "path of an export, or leave it out to export to a temporary place."
        ) from error
