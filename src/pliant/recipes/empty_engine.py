"""`python -m pliant.recipes.empty_engine`: the peak memory of a process around an engine, as JSON.

The engine's own bytes are next to nothing, so what is printed is Python, NumPy and the library.
"""

from __future__ import annotations

import json

import numpy as np

import pliant.artifact  # noqa: F401  what opening a model loads
from pliant.measurement import peak_memory_bytes
from pliant.runtime import Chunk
from pliant.runtime.engine import Engine
from pliant.runtime.random_weights import RandomWeights
from pliant.spec import ModelSpec
from pliant.subnet import Subnet


def main() -> None:
    """Decode a token of a model of a few kB and print the peak."""
    spec = ModelSpec(
        architecture="llama", vocab_size=32, hidden_size=32, num_blocks=1, num_heads=1,
        num_groups=1, head_dim=32, ffn_size=64, max_context=8, attention_scale=1.0,
    )  # fmt: skip
    with Engine(RandomWeights(spec, 4), Subnet.full(spec, 4), 1) as engine:
        engine.forward_chunk([Chunk(np.array([1], np.int32), engine.new_cache(4))])
        print(json.dumps({"peak_bytes": peak_memory_bytes()}))


if __name__ == "__main__":
    main()
