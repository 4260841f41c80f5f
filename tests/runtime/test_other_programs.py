"""What others use of our CPUs is told from what we use."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from pliant.runtime import other_programs
from pliant.runtime.other_programs import OtherPrograms


class Machine:
    """Two CPUs, one of them ours, and a clock, all set by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.own = 5.0
        self.busy = [50.0, 70.0]
        monkeypatch.setattr("time.perf_counter", lambda: self.now)
        monkeypatch.setattr(other_programs, "_own_seconds", lambda: self.own)
        monkeypatch.setattr(other_programs, "_cpus", lambda: [1])
        monkeypatch.setattr("psutil.cpu_times", self.times)

    def times(self, percpu: bool) -> list[SimpleNamespace]:
        """User time is what is set; idle and guest time are beside it and in it."""
        fields = [{"user": busy, "idle": 900.0, "guest": busy} for busy in self.busy]
        return [SimpleNamespace(_asdict=lambda found=found: found) for found in fields]


def test_only_our_cpus_and_only_others_count(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    watch = OtherPrograms()
    machine.now += 10.0
    machine.own += 6.0
    machine.busy = [59.0, 79.0]
    assert watch.share() == pytest.approx(0.3)


def test_rounding_of_ticks_is_no_share(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    watch = OtherPrograms()
    machine.own += 8.0
    machine.now += 0.5
    machine.busy[1] += 9.0
    assert watch.share() == 0.0, "half a second says nothing"
    machine.now += 10.0
    machine.busy[1] -= 2.0
    assert watch.share() == 0.0, "less than our own time"


def test_the_system_is_read() -> None:
    watch = OtherPrograms()
    assert other_programs._busy_seconds() > 0.0
    assert 0.0 <= watch.share() <= 1.0
