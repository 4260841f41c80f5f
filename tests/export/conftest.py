"""Artifacts of tiny random models of every architecture; what they compute in our engine."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pliant.artifact import Artifact
from pliant.runtime import Chunk, Engine
from pliant.subnet import Subnet

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

#: An interpreter with llama-cpp-python, as the benchmarks take it.
PEER_PYTHON = os.environ.get("PLIANT_PEER_PYTHON", "")
MakeArtifact = Callable[..., Artifact]


@pytest.fixture(scope="session")
def tiny_artifact(tmp_path_factory: pytest.TempPathFactory) -> MakeArtifact:
    """`tiny_artifact(name, planes=8)`: made once; do not change its files."""
    from interop_models import quick_artifact, tiny_checkpoint

    @lru_cache
    def make(name: str, planes: int = 8) -> Artifact:
        folder = tmp_path_factory.mktemp(name)
        checkpoint = tiny_checkpoint(name, folder / name)
        return quick_artifact(checkpoint, folder / f"{name}.pliant", planes)

    return make


def tokens(count: int = 48) -> NDArray[np.int32]:
    return np.random.default_rng(0).integers(3, 300, count).astype(np.int32)


def engine_logits(artifact: Artifact, subnet: Subnet) -> NDArray[np.float32]:
    """Exact logits behind each of `tokens()`."""
    with Engine(artifact, subnet, threads=1, activations="float32", cache_type="float32") as engine:
        chunk = Chunk(tokens(), engine.new_cache(len(tokens())), logits="all")
        return engine.forward_chunk([chunk])[0]


@pytest.fixture(scope="session")
def exact_logits() -> Callable[[Artifact, Subnet], NDArray[np.float32]]:
    return engine_logits
