"""The cache: its bytes, its limits, and what a whole engine keeps resident."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pliant.errors import GenerationError, OutOfSpaceError, UsageError
from pliant.runtime import Chunk, Engine
from pliant.runtime.assembly import CACHE_VALUE_BYTES

EngineMaker = Callable[..., Engine]


def test_bytes_are_those_of_the_subnet_and_its_bookkeeping(make_engine: EngineMaker) -> None:
    for cache_type, value_bytes in CACHE_VALUE_BYTES.items():
        engine = make_engine({"cache_type": cache_type})
        cache = engine.new_cache(100)
        assert cache.num_bytes == engine.subnet.cache_bytes(100, value_bytes) + 100 * (4 + 4 + 4)
        assert (cache.length, cache.capacity) == (0, 100)
        assert engine.memory()["cache"] == cache.num_bytes


def test_int8_caches_have_a_scale_for_each_key_and_value(make_engine: EngineMaker) -> None:
    """Two blocks of three groups of 12: codes, scales, position and log-weight."""
    assert make_engine({"cache_type": "int8"}).new_cache(1).num_bytes == 2 * 6 * (12 + 4) + 12


@pytest.mark.parametrize("capacity", [0, -3, 601, 2**40])
def test_capacities_that_cannot_be(make_engine: EngineMaker, capacity: int) -> None:
    with pytest.raises(UsageError, match="asked for"):
        make_engine().new_cache(capacity)


def test_max_bytes_is_a_hard_limit(make_engine: EngineMaker) -> None:
    engine = make_engine()
    token_bytes = engine.new_cache(1).num_bytes
    cache = engine.new_cache(100, max_bytes=10 * token_bytes + 5)
    assert cache.capacity == 10
    assert cache.num_bytes <= 10 * token_bytes + 5
    with pytest.raises(GenerationError, match="room for 10 of 10"):
        engine.forward_chunk([Chunk(np.arange(11), cache)])
    with pytest.raises(GenerationError, match=f"{token_bytes} bytes .* {token_bytes - 1} bytes"):
        engine.new_cache(100, max_bytes=token_bytes - 1)
    for nothing in (0, -1):
        with pytest.raises(UsageError, match="allow more"):
            engine.new_cache(100, max_bytes=nothing)


def test_memory_that_cannot_be_had(make_engine: EngineMaker) -> None:
    engine = make_engine(max_context=2**31 - 1)
    with pytest.raises(OutOfSpaceError, match="does not fit into memory"):
        for _ in range(10_000):  # some systems promise terabytes, none promises this many
            engine.new_cache(2**31 - 1).truncate(0)
            engine.caches = [*getattr(engine, "caches", []), engine.new_cache(2**31 - 1)]


def test_truncate_forgets_the_end(make_engine: EngineMaker) -> None:
    engine = make_engine()
    cache = engine.new_cache(8)
    engine.forward_chunk([Chunk([1, 2, 3, 4], cache)])
    for wrong in (-1, 5):
        with pytest.raises(UsageError, match="cannot be cut"):
            cache.truncate(wrong)
    cache.truncate(4)
    cache.truncate(1)
    assert cache.positions.tolist() == [0]
    cache.truncate(0)
    assert cache.length == 0


@pytest.mark.parametrize("cache_type", CACHE_VALUE_BYTES)
def test_a_clone_is_independent(make_engine: EngineMaker, cache_type: str) -> None:
    engine = make_engine({"cache_type": cache_type})
    cache = engine.new_cache(8)
    engine.forward_chunk([Chunk([1, 2], cache)])
    copy = cache.clone()
    of_copy = engine.forward_chunk([Chunk([3], copy)])[0]
    assert (cache.length, copy.length, copy.capacity) == (2, 3, 8)
    np.testing.assert_array_equal(engine.forward_chunk([Chunk([3], cache)])[0], of_copy)


@pytest.mark.parametrize("weights", [[0.0], [0.0, np.nan], [np.inf, 0.0]])
def test_log_weights_are_finite_and_one_for_each(make_engine: EngineMaker, weights: Any) -> None:
    engine = make_engine()
    cache = engine.new_cache(8)
    engine.forward_chunk([Chunk([1, 2], cache)])
    with pytest.raises(UsageError, match="log-weight"):
        cache.set_log_weights(np.array(weights, np.float32))


def test_memory_counts_live_caches(make_engine: EngineMaker) -> None:
    engine = make_engine(planes=3)
    assert engine.memory()["cache"] == 0
    caches = [engine.new_cache(50) for _ in range(3)]
    assert engine.memory()["cache"] == 3 * caches[0].num_bytes
    del caches
    assert engine.memory()["cache"] == 0
    memory = engine.memory()
    assert memory["mapped"] + memory["vectors"] == engine.subnet.weight_bytes


#: Runs a model of random bytes in mapped files and prints, in bytes, the growth of the peak
#: resident set since before the engine, what the engine says it maps, and what its cache holds.
RESIDENT_PEAK = """
import re, sys
from pathlib import Path
import numpy as np
from pliant.bits import plane_bytes, scale_bytes
from pliant.runtime import Chunk, Engine
from pliant.spec import ModelSpec
from pliant.subnet import Subnet

def resident(field):
    return int(re.search(field + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

class Mapped:
    spec = ModelSpec(architecture="llama", vocab_size=8000, hidden_size=1024, num_blocks=8,
                     num_heads=16, num_groups=4, head_dim=64, ffn_size=2816, max_context=1024,
                     attention_scale=0.125, tied_embeddings=True)
    def bytes(self, name, size):
        path = Path(sys.argv[1]) / name
        if not path.exists():
            path.write_bytes(np.random.default_rng(0).bytes(size))
        return np.memmap(path, np.uint8, "r")
    def planes(self, name):
        size = plane_bytes(*self.spec.tensors()[name])
        return [self.bytes(f"{name}-{plane}", size) for plane in range(4)]
    def scales(self, name):
        path = Path(sys.argv[1]) / f"{name}-scales"
        if not path.exists():
            count = scale_bytes(*self.spec.tensors()[name]) // 2
            np.full(count, 1e-4, np.float16).tofile(path)
        return np.memmap(path, np.uint16, "r")
    def vector(self, name):
        return np.ones(self.spec.tensors()[name], np.float32)

artifact, planes = Mapped(), int(sys.argv[2])
for name, shape in artifact.spec.tensors().items():
    if len(shape) == 2:
        artifact.planes(name), artifact.scales(name)
Path("/proc/self/clear_refs").write_text("5")
before = resident("VmRSS")
engine = Engine(artifact, Subnet.full(artifact.spec, planes), threads=2)
cache = engine.new_cache(400)
engine.forward_chunk([Chunk(np.arange(390), cache, logits="last")])
for token in range(4):
    engine.forward_chunk([Chunk([token], cache)])
print(resident("VmHWM") - before, engine.memory()["mapped"], cache.num_bytes)
"""
#: Scratch of 256 tokens at these sizes is 9 MB; the rest is threads, code pages and malloc.
CONSTANT_BYTES = 24 << 20


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measures Linux memory")
def test_peak_is_weights_read_and_cache(tmp_path: Path) -> None:
    """Of 4 stored planes, 2 or 4 are read: only those become resident."""
    for planes in (4, 2):
        result = subprocess.run(
            [sys.executable, "-c", RESIDENT_PEAK, str(tmp_path), str(planes)],
            capture_output=True, text=True, check=True, timeout=300,
        )  # fmt: skip
        peak, mapped, cached = map(int, result.stdout.split())
        print(f"{planes} planes: peak {peak / 1e6:.1f} MB, weights {mapped / 1e6:.1f}, "
              f"cache {cached / 1e6:.1f}, rest {(peak - mapped - cached) / 1e6:.1f}")  # fmt: skip
        assert peak <= mapped + cached + CONSTANT_BYTES
        assert peak >= mapped  # the weights were really read


@pytest.mark.parametrize("cache_type", CACHE_VALUE_BYTES)
def test_a_copy_of_a_beginning_goes_on_like_the_original(
    make_engine: EngineMaker, cache_type: str
) -> None:
    """In a smaller and a larger cache, to the last bit, with log-weights."""
    engine = make_engine({"cache_type": cache_type})
    whole = engine.new_cache(30)
    engine.forward_chunk([Chunk(np.arange(20), whole)])
    whole.set_log_weights(np.linspace(0, 1, 20, dtype=np.float32))
    expected = whole.clone()
    expected.truncate(12)
    for capacity in (13, 100):
        copied = whole.copy(12, capacity)
        assert (copied.length, copied.capacity) == (12, capacity)
        same = expected.clone()
        logits = engine.forward_chunk([Chunk([7], copied), Chunk([7], same)])
        np.testing.assert_array_equal(logits[0], logits[1])
    assert whole.length == 20


def test_copies_that_cannot_be(make_engine: EngineMaker) -> None:
    engine = make_engine()
    cache = engine.new_cache(8)
    engine.forward_chunk([Chunk([1, 2, 3], cache)])
    for length, capacity in ((4, 8), (-1, 8), (3, 2)):
        with pytest.raises(UsageError, match="cannot be copied"):
            cache.copy(length, capacity)
    with pytest.raises(UsageError, match="reads at most 600"):
        cache.copy(3, 601)
