"""Threads: how many, on which CPUs, and when the caller had better work alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

native = pytest.importorskip("pliant._native", reason="the extension is not built")
kernels = native.kernels

SMALL = 1_000_000  # weights of a step where barriers matter
LARGE = 100_000_000


class TestCrew:
    """The number of workers follows the clock; results do not depend on it."""

    def run(self, crew: object, work: int, alone: float, together: float, slept: float = 0) -> int:
        """One step of given seconds alone and together; the workers it got."""
        workers = crew.size_for(work)
        seconds = alone if workers == 1 else together
        crew.record(workers, work, seconds, slept if workers > 1 else 0)
        return workers

    def test_tiny_steps_and_single_threads_are_alone(self) -> None:
        assert kernels.Crew(2).size_for(1000) == 1
        assert kernels.Crew(1).size_for(LARGE) == 1

    def test_large_steps_take_all(self) -> None:
        crew = kernels.Crew(4)
        assert [self.run(crew, LARGE, 4.0, 1.0) for _ in range(100)] == [4] * 100

    @pytest.mark.parametrize(("alone", "together", "usual"), [(50e-6, 90e-6, 1), (90e-6, 50e-6, 2)])
    def test_small_steps_go_the_faster_way(self, alone: float, together: float, usual: int) -> None:
        crew = kernels.Crew(2)
        sizes = [self.run(crew, SMALL, alone, together) for _ in range(320)]
        assert 0.95 * 320 < sizes.count(usual) < 320  # and now and then the other

    def test_small_steps_notice_a_change(self) -> None:
        crew = kernels.Crew(2)
        for _ in range(100):
            self.run(crew, SMALL, 90e-6, 50e-6)
        after = [self.run(crew, SMALL, 90e-6, 500e-6) for _ in range(1000)]
        assert after[-200:].count(1) > 0.9 * 200

    def test_a_stolen_core_is_left_alone_ever_longer(self) -> None:
        crew = kernels.Crew(2)
        sizes = [self.run(crew, LARGE, 2.0, 9.0, slept=8.0) for _ in range(600)]
        tries = np.flatnonzero(np.array(sizes) == 2)
        assert np.diff(tries)[:7].tolist() == [2, 3, 5, 9, 17, 33, 65]
        assert np.diff(tries).max() == 65
        back = [self.run(crew, LARGE, 2.0, 1.0) for _ in range(200)]
        assert back[-100:] == [2] * 100

    def test_some_waiting_is_no_reason(self) -> None:
        crew = kernels.Crew(2)
        assert [self.run(crew, LARGE, 2.0, 1.5, slept=0.7) for _ in range(50)] == [2] * 50


class TestQuota:
    """cgroup quotas of both versions, in a tree like /sys/fs/cgroup."""

    def write(self, root: Path, **files: str) -> str:
        for name, text in files.items():
            path = root / name.replace("__", "/").replace("_max", ".max")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return str(root)

    def test_none(self, tmp_path: Path) -> None:
        assert kernels.quota_cpus(str(tmp_path), "0::/\n") == 0
        assert kernels.quota_cpus(self.write(tmp_path, cpu_max="max 100000\n"), "0::/\n") == 0
        assert kernels.quota_cpus(str(tmp_path / "missing"), "") == 0
        assert kernels.quota_cpus(str(tmp_path), "nonsense\n:\n::::\n") == 0

    @pytest.mark.parametrize(
        ("quota", "cpus"), [("200000 100000", 2), ("150000 100000", 2), ("5000 100000", 1)]
    )
    def test_version_2(self, tmp_path: Path, quota: str, cpus: int) -> None:
        assert kernels.quota_cpus(self.write(tmp_path, cpu_max=quota), "0::/\n") == cpus

    def test_the_least_of_all_levels(self, tmp_path: Path) -> None:
        root = self.write(
            tmp_path,
            a__b__cpu_max="800000 100000",
            a__cpu_max="300000 100000",
            cpu_max="max 100000",
        )
        assert kernels.quota_cpus(root, "0::/a/b\n") == 3
        assert kernels.quota_cpus(root, "0::/a/b/gone\n") == 3
        assert kernels.quota_cpus(root, "0::/other\n") == 0

    def test_version_1(self, tmp_path: Path) -> None:
        folder = tmp_path / "cpu" / "box"
        folder.mkdir(parents=True)
        (folder / "cpu.cfs_quota_us").write_text("-1\n")
        (folder / "cpu.cfs_period_us").write_text("100000\n")
        text = "5:cpuset:/elsewhere\n4:cpu,cpuacct:/box\n"
        assert kernels.quota_cpus(str(tmp_path), text) == 0
        (folder / "cpu.cfs_quota_us").write_text("250000\n")
        assert kernels.quota_cpus(str(tmp_path), text) == 3


@pytest.fixture
def any_cpus() -> Iterator[list[int]]:
    """The CPUs of this process; what a test does to its affinity is undone."""
    before = os.sched_getaffinity(0)
    yield sorted(before)
    os.sched_setaffinity(0, before)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="sets the affinity of a thread")
def test_workers_step_aside_for_the_caller(any_cpus: list[int]) -> None:
    """Wherever the caller is, a phase ends, and its own affinity stays as it was."""
    for cpu in any_cpus:
        os.sched_setaffinity(0, {cpu})
        assert len(kernels.measure_barrier(2, 50, 3)) == 3
        assert os.sched_getaffinity(0) == {cpu}
    os.sched_setaffinity(0, {any_cpus[0]})
    assert native.default_threads() == 1
