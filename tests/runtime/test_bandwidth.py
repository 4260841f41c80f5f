"""The probe of read bandwidth: what it reads, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from pliant.errors import UsageError
from pliant.runtime import bandwidth


def test_rates_are_positive_and_say_what_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandwidth, "probe_bytes", lambda: 2**22)
    found = bandwidth.read_rate(2, rounds=3)
    assert found.n == 3
    assert found.low > 0
    assert (found.unit, found.conditions) == ("GB/s", "2 threads")


@pytest.mark.parametrize("threads", [0, 257, 10_000, -1])
def test_threads_that_cannot_be(threads: int) -> None:
    with pytest.raises(UsageError, match=f"{threads} threads were asked for; use 1 to 256"):
        bandwidth.read_rate(threads)


def test_no_rounds_are_refused() -> None:
    with pytest.raises(UsageError, match="at least 1"):
        bandwidth.read_rate(1, rounds=0)


def test_it_reads_more_than_the_largest_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index, size in enumerate(("32K", "1024K", "98304K", "unknown")):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(size + "\n")
    monkeypatch.setattr(bandwidth, "_CACHES", tmp_path)
    assert bandwidth.largest_cache_bytes() == 96 * 2**20
    memory = type("Memory", (), {"available": 2**34})()
    monkeypatch.setattr(bandwidth.psutil, "virtual_memory", lambda: memory)
    assert bandwidth.probe_bytes() == 384 * 2**20
    memory.available = 2**28
    assert bandwidth.probe_bytes() == 2**26


def test_a_system_without_that_folder_is_read_as_no_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bandwidth, "_CACHES", tmp_path / "missing")
    assert bandwidth.largest_cache_bytes() == 0
