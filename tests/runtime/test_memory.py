"""Which bytes of a file an engine brings into memory, and when."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pliant.bits import BitPlan
from pliant.errors import OutOfSpaceError, UsageError
from pliant.runtime import Chunk, Engine
from pliant.shape import SubnetShape
from pliant.spec import ModelSpec
from pliant.subnet import Subnet

SPEC = ModelSpec(
    architecture="llama", vocab_size=512, hidden_size=256, num_blocks=2, num_heads=4, num_groups=2,
    head_dim=64, ffn_size=512, max_context=64, attention_scale=0.125, tied_embeddings=True,
)  # fmt: skip


class MappedArtifact:
    """Each plane of each matrix in a file of its own, so that no two share a page."""

    def __init__(self, source: Any, folder: Path) -> None:
        self.spec = source.spec
        self.vector = source.vector
        self.folder = folder
        for name, shape in self.spec.tensors().items():
            if len(shape) == 2:
                for plane, content in enumerate(source.planes(name)):
                    self._write(f"{name}-{plane}", content)
                self._write(f"{name}-scales", source.scales(name))

    def _write(self, name: str, content: np.ndarray) -> None:
        with (self.folder / name).open("wb") as file:
            file.write(content.tobytes())
            file.flush()
            os.fsync(file.fileno())

    def planes(self, name: str) -> list[np.ndarray]:
        return [np.memmap(self.folder / f"{name}-{plane}", np.uint8, "r") for plane in range(8)]

    def scales(self, name: str) -> np.ndarray:
        return np.memmap(self.folder / f"{name}-scales", np.uint16, "r")

    def evict(self) -> None:
        """Ask the system to forget the files; it may not want to."""
        for path in self.folder.iterdir():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@pytest.fixture
def cold(memory_artifact: Callable[..., Any], tmp_path: Path) -> MappedArtifact:
    """An artifact of which no byte is in memory."""
    if not hasattr(os, "posix_fadvise"):
        pytest.skip("needs a system that can be asked to forget files")
    artifact = MappedArtifact(memory_artifact(SPEC), tmp_path)
    artifact.evict()
    with Engine(artifact, Subnet.full(SPEC), 1, preload="none") as engine:
        if engine.memory()["touched"] > 0:
            pytest.skip("this file system keeps its files in memory")
    artifact.evict()
    return artifact


def decode(engine: Engine) -> None:
    engine.forward_chunk([Chunk([1, 2, 3], engine.new_cache(8))])


def test_a_cut_brings_in_what_it_reads(cold: MappedArtifact) -> None:
    """Three planes of one block are read; the other block and planes stay on the disk."""
    shape = SubnetShape((1,), (2,), (512,))
    small = Subnet(SPEC, shape, BitPlan.uniform(1, 3, 3))
    whole = Engine(cold, Subnet.full(SPEC), 1, preload="none")
    with Engine(cold, small, 2, preload="none") as engine:
        decode(engine)
        memory = engine.memory()
    assert memory["touched"] == memory["mapped"]
    # Of all eight planes of both blocks nothing else is there.
    assert whole.memory()["touched"] == memory["touched"]


@pytest.mark.parametrize("preload", ["all", "lock"])
def test_all_is_there_when_the_engine_is(cold: MappedArtifact, preload: Any) -> None:
    whole = Engine(cold, Subnet.full(SPEC), 1, preload="none")
    try:
        engine = Engine(cold, Subnet.full(SPEC, 4), 1, preload=preload)
    except OutOfSpaceError:
        pytest.skip("this process may not lock so much memory")
    memory = engine.memory()
    assert memory["touched"] == memory["mapped"]
    assert whole.memory()["touched"] == memory["mapped"]
    decode(engine)
    engine.close()


def test_reading_ahead_changes_nothing_else(cold: MappedArtifact) -> None:
    results = []
    for preload in ("ahead", "none", "all"):
        with Engine(cold, Subnet.full(SPEC, 2), 1, preload=preload) as engine:
            results.append(engine.forward_chunk([Chunk([5, 6], engine.new_cache(4))])[0])
            memory = engine.memory()
            assert memory["touched"] <= memory["mapped"]
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


def test_narrow_cuts_count_the_columns_they_read(memory_artifact: Callable[..., Any]) -> None:
    """Half of the columns of `down`: every second run of bytes."""
    artifact = memory_artifact(SPEC)
    subnet = Subnet(SPEC, SubnetShape((0, 1), (1, 2), (256, 64)), Subnet.full(SPEC, 5).bits)
    memory = Engine(artifact, subnet, 1).memory()
    assert memory["mapped"] + memory["vectors"] == subnet.weight_bytes
    assert memory["touched"] == memory["mapped"]  # arrays, not files


def test_other_preloads(memory_artifact: Callable[..., Any]) -> None:
    with pytest.raises(UsageError, match="use none, ahead, all or lock"):
        Engine(memory_artifact(SPEC), Subnet.full(SPEC), 1, preload="soon")  # type: ignore[arg-type]


def test_engines_say_what_they_are(memory_artifact: Callable[..., Any]) -> None:
    text = repr(Engine(memory_artifact(SPEC), Subnet.full(SPEC, 3), 1, cache_type="int8"))
    assert "llama, 2 blocks" in text
    assert "1 threads, int8 activations, int8 cache" in text
