"""`OtherPrograms`: how much of this process's CPUs others used while something was measured."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import psutil

#: Seconds below which ticks of a hundredth are too coarse to say anything.
_LEAST_SECONDS = 1.0


class OtherPrograms:
    """Watches, from when it is made, the CPUs that this process may run on.

    What a hypervisor gave to other guests counts as theirs. It sees only what the system counts:
    where there is no count by CPU, nothing is seen.
    """

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._busy = _busy_seconds()
        self._own = _own_seconds()

    def share(self) -> float:
        """Share of these CPUs' time that others used, 0 to 1; 0 for less than a second."""
        passed = time.perf_counter() - self._started
        if passed < _LEAST_SECONDS:
            return 0.0
        others = (_busy_seconds() - self._busy) - (_own_seconds() - self._own)
        return min(1.0, max(0.0, others / (passed * max(1, len(_cpus())))))


def _cpus() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(psutil.cpu_count() or 1))


def _busy_seconds() -> float:
    """Seconds that these CPUs were not idle since the machine started."""
    return sum(_busy_of_each())


def _busy_of_each() -> Iterator[float]:
    times = psutil.cpu_times(percpu=True)
    for cpu in _cpus():
        if cpu < len(times):
            found = times[cpu]._asdict()
            # The time of guests stands in that of users already.
            yield sum(
                seconds
                for name, seconds in found.items()
                if name not in ("idle", "iowait", "guest", "guest_nice")
            )


def _own_seconds() -> float:
    """CPU seconds of this process and of its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
