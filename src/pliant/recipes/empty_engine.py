"""`python -m pliant.recipes.empty_engine`: the peak memory of a process around an engine, as JSON.

The engine's own bytes are next to nothing, so what is printed is Python, NumPy and the library.
"""

from __future__ import annotations

import json

import numpy as np
from numpy.typing import NDArray

import pliant.artifact  # noqa: F401  what opening a model loads
from pliant.bits import plane_bytes, scale_bytes
from pliant.measurement import peak_memory_bytes
from pliant.runtime import Chunk
from pliant.runtime.engine import Engine
from pliant.spec import ModelSpec
from pliant.subnet import Subnet


class _Zeros:
    """Weights of zeros: random ones would load a part of NumPy that an engine does not need."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self._shapes = spec.tensors()

    def planes(self, name: str) -> list[NDArray[np.uint8]]:
        return [np.zeros(plane_bytes(*self._shapes[name]), np.uint8)] * 4

    def scales(self, name: str) -> NDArray[np.uint16]:
        return np.zeros(scale_bytes(*self._shapes[name]) // 2, np.uint16)

    def vector(self, name: str) -> NDArray[np.float32]:
        return np.ones(self._shapes[name], np.float32)


def main() -> None:
    """Decode a token of a model of a few kB and print the peak."""
    spec = ModelSpec(
        architecture="llama", vocab_size=32, hidden_size=32, num_blocks=1, num_heads=1,
        num_groups=1, head_dim=32, ffn_size=64, max_context=8, attention_scale=1.0,
    )  # fmt: skip
    with Engine(_Zeros(spec), Subnet.full(spec, 4), 1) as engine:
        engine.forward_chunk([Chunk(np.array([1], np.int32), engine.new_cache(4))])
        print(json.dumps({"peak_bytes": peak_memory_bytes()}))


if __name__ == "__main__":
    main()
