"""The memory that costs predict is the memory that the engine says it holds."""

from pathlib import Path

import pytest

from pliant.artifact import Artifact
from pliant.costs import WorkingSet, subnet_memory
from pliant.runtime import Chunk
from pliant.runtime.engine import Engine


@pytest.mark.parametrize("cut", ["", "b4", "d2-w0.5-b3", "d1-b2-e4"])
def test_weights_and_cache_are_exact(pristine: Path, cut: str) -> None:
    artifact = Artifact.open(pristine)
    subnet = artifact.subnet(cut)
    cost = subnet_memory(subnet, WorkingSet(context=100))
    with Engine(artifact, subnet, threads=1) as engine:
        cache = engine.new_cache(100)
        held = engine.memory()
        assert held["mapped"] + held["vectors"] == cost.weight_bytes
        assert held["cache"] == cache.num_bytes == cost.cache_bytes


@pytest.mark.parametrize("tokens", [1, 32, 128])
@pytest.mark.parametrize("cut", ["", "d2-w0.5-b3"])
def test_scratch_is_what_the_engine_takes(pristine: Path, cut: str, tokens: int) -> None:
    """Within the buffers of the product kernels and the rounding of rows to cache lines."""
    import numpy as np

    artifact = Artifact.open(pristine)
    subnet = artifact.subnet(cut)
    cost = subnet_memory(subnet, WorkingSet(context=128, chunk=tokens))
    with Engine(artifact, subnet, threads=1) as engine:
        cache = engine.new_cache(128)
        engine.forward_chunk([Chunk(np.zeros(tokens, np.int32), cache)])
        held = engine.memory()["scratch"]
    # The largest buffers of a kernel: AVX2 keeps 64 KiB of codes and packs the activations.
    assert held <= 1.2 * cost.scratch_bytes + 96_000
    assert held >= 0.5 * (cost.scratch_bytes - 4 * subnet.spec.vocab_size)
