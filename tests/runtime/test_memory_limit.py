"""Limits of control groups, of both versions, as far up as they go."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pliant.runtime import kernel_speed
from pliant.runtime.memory_limit import usable_memory
from pliant.runtime.random_weights import RandomWeights
from pliant.spec import ModelSpec


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_the_lowest_limit_above_a_process_counts(tmp_path: Path) -> None:
    write(tmp_path / "own", "0::/outer/inner\n")
    write(tmp_path / "outer/inner/memory.max", "max\n")
    write(tmp_path / "outer/memory.max", "1000000\n")
    write(tmp_path / "outer/memory.current", "700000\n")
    write(tmp_path / "outer/memory.stat", "anon 1\ninactive_file 300000\n")
    memory = usable_memory(tmp_path, tmp_path / "own")
    assert memory.limit_bytes == 1_000_000
    # What files occupy can be had back: 700000 - 300000 are used.
    assert memory.usable_bytes == min(memory.available_bytes, 600_000)


def test_version_1_is_read(tmp_path: Path) -> None:
    write(tmp_path / "own", "5:cpu:/x\n4:memory,hugetlb:/box\n")
    write(tmp_path / "memory/box/memory.limit_in_bytes", "5000\n")
    write(tmp_path / "memory/box/memory.usage_in_bytes", "9000\n")
    write(tmp_path / "memory/memory.limit_in_bytes", "9223372036854771712\n")
    memory = usable_memory(tmp_path, tmp_path / "own")
    assert (memory.limit_bytes, memory.usable_bytes) == (5000, 0)


def test_without_groups_what_is_free_counts(tmp_path: Path) -> None:
    memory = usable_memory(tmp_path, tmp_path / "missing")
    assert memory.limit_bytes == 0
    assert memory.usable_bytes == memory.available_bytes


def test_kernels_and_storage_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_speed, "_FILE_BYTES", 2**16)
    monkeypatch.setattr(kernel_speed, "_EDGE", 32)
    assert kernel_speed.kernel_name() in kernel_speed.kernel_paths()
    assert kernel_speed.product_seconds(2, 64, 64, 3, 1, 0.0, 1) > 0
    assert kernel_speed.phase_seconds(1) == 0.0
    rate, how = kernel_speed.integer_rate(1)
    assert rate > 0 and "1 threads" in how
    assert kernel_speed.float_rate() > 0
    assert all(found > 0 for found in kernel_speed.storage_rates(tmp_path).values())


def test_random_weights_have_the_shapes_of_an_artifact() -> None:
    spec = ModelSpec(
        architecture="llama", vocab_size=70, hidden_size=40, num_blocks=1, num_heads=2,
        num_groups=1, head_dim=20, ffn_size=90, max_context=8, attention_scale=1.0, qkv_bias=True,
    )  # fmt: skip
    first, second = RandomWeights(spec, planes=3), RandomWeights(spec, planes=3)
    assert len(first.planes("embedding")) == 3
    assert first.planes("embedding")[0].size == 3 * 2 * 128
    assert first.scales("blocks.0.down").size == 2 * 2 * 32
    np.testing.assert_array_equal(first.planes("head")[2], second.planes("head")[2])
    assert not first.vector("blocks.0.q.bias").any()
    assert first.vector("final_norm").tolist() == [1.0] * 40
