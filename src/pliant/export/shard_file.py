"""`write_shard`: a safetensors file whose tensors are made one at a time.

The library's own writer wants all tensors of a file in memory at once; its format is 8 bytes with
the length of a JSON header, the header, and the tensors back to back.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pliant.export.number_types import NUMBER_BYTES, NumberType

_DTYPES: dict[NumberType, str] = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


def write_shard(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    kind: NumberType,
    make: Callable[[str], NDArray[np.generic]],
) -> None:
    """Write the tensors `shapes` in their order; `make` gives each, in `kind` and of its shape."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for name, shape in shapes.items():
        end = begin + NUMBER_BYTES[kind] * int(np.prod(shape))
        header[name] = {"dtype": _DTYPES[kind], "shape": shape, "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header, separators=(",", ":")).encode()
    # Spaces behind the header keep the numbers aligned for those who map the file.
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            value = np.ascontiguousarray(make(name))
            if value.shape != shape or value.itemsize != NUMBER_BYTES[kind]:
                raise ValueError(f"{name} was made {value.dtype}{value.shape}, not {kind}{shape}.")
            file.write(value.data)
