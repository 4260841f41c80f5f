"""`pliant doctor`: is this machine set up so that the engine runs as fast as it can?"""

from __future__ import annotations

import importlib.util
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import msgspec

from pliant.costs.device import read_device
from pliant.measurement import Progress, format_bytes, silent
from pliant.recipes.probe import profile_path
from pliant.runtime.bandwidth import read_rate
from pliant.runtime.kernel_speed import (
    default_threads,
    kernel_name,
    kernel_paths,
    product_seconds,
)
from pliant.runtime.memory_limit import usable_memory

#: ok needs nothing; advice would make it better; problem makes the engine slow or fail.
State = Literal["ok", "advice", "problem"]

#: A step of one token that is timed: 4 planes of a matrix of 2048 x 2048, from memory.
_PLANES, _EDGE, _SET_BYTES = 4, 2048, 2**27
#: Of the read rate; below, something keeps the kernels from the memory.
_LEAST_SHARE = 0.5
#: Memory below which next to no model runs.
_LEAST_MEMORY = 256_000_000
#: Packages of each extra: module -> extra.
_EXTRAS = {"torch": "torch", "matplotlib": "plot"}
_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was looked at: what was found, and what to do where it is not ok."""

    topic: str
    state: State
    found: str
    advice: str = ""


def examine(progress: Progress = silent) -> list[Finding]:
    """Every finding about this machine; takes some seconds."""
    checks: tuple[Callable[[], Iterator[Finding]], ...] = (
        _kernels, _threads, _memory, _pages, _locked, _extras, _profile,
    )  # fmt: skip
    findings: list[Finding] = []
    for number, check in enumerate(checks):
        findings += check()
        progress("examining", number + 1, len(checks))
    return findings


def worst(findings: list[Finding]) -> State:
    """The worst state among findings."""
    order: tuple[State, ...] = ("ok", "advice", "problem")
    return max((finding.state for finding in findings), key=order.index, default="ok")


def _kernels() -> Iterator[Finding]:
    used, paths = kernel_name(), kernel_paths()
    asked = os.environ.get("PLIANT_ISA")
    why = "PLIANT_ISA asks for it" if asked else "the fastest this processor and build have"
    found = f"{used}, {why}; there are {', '.join(paths)}"
    if used == "scalar":
        yield Finding(
            topic="kernels", state="problem", found=found,
            advice="Unset PLIANT_ISA." if asked else
            "Rebuild pliant for this processor; no fast path was compiled in.",
        )  # fmt: skip
    elif used != paths[0]:
        yield Finding(
            topic="kernels", state="advice", found=found,
            advice=f"Unset PLIANT_ISA to use {paths[0]}.",
        )  # fmt: skip
    else:
        yield Finding(topic="kernels", state="ok", found=found)


def _threads() -> Iterator[Finding]:
    """The fastest number of threads, by measurement, and the bandwidth it reaches."""
    most = default_threads()
    size = _PLANES * _EDGE * _EDGE // 8 + _EDGE * _EDGE // 32
    counts = sorted({1, max(1, most // 2), most})
    rates = {
        count: size / product_seconds(_PLANES, _EDGE, _EDGE, 1, count, _SET_BYTES, 3)
        for count in counts
    }
    best = max(rates, key=lambda count: rates[count])
    speeds = ", ".join(f"{rate / 1e9:.1f} GB/s with {count}" for count, rate in rates.items())
    slow = best != most and rates[best] > 1.15 * rates[most]
    yield Finding(
        topic="threads",
        state="advice" if slow else "ok",
        found=f"{most} by default; kernels read {speeds}",
        advice=f"Use --threads {best} while the machine is as busy as now." if slow else "",
    )
    reading = read_rate(most, rounds=3).median * 1e9
    share = rates[most] / reading
    yield Finding(
        topic="bandwidth",
        state="ok" if share >= _LEAST_SHARE else "advice",
        found=f"reading alone {reading / 1e9:.1f} GB/s, of which kernels reach {share:.0%}",
        advice="" if share >= _LEAST_SHARE else
        "Close other programs; a noisy neighbour or a low clock keeps kernels from the memory.",
    )  # fmt: skip


def _memory() -> Iterator[Finding]:
    memory = usable_memory()
    found = f"{format_bytes(memory.usable_bytes)} usable of {format_bytes(memory.total_bytes)}"
    if memory.limit_bytes:
        found += f"; the control group allows {format_bytes(memory.limit_bytes)}"
    small = memory.usable_bytes < _LEAST_MEMORY
    yield Finding(
        topic="memory",
        state="problem" if small else "ok",
        found=found,
        advice="Close programs, or raise the limit of the container." if small else "",
    )


def _pages() -> Iterator[Finding]:
    try:
        text = _HUGE_PAGES.read_text()
    except OSError:
        return
    mode = text.partition("[")[2].partition("]")[0] or text.strip()
    yield Finding(
        topic="huge pages",
        state="advice" if mode == "never" else "ok",
        found=f"transparent huge pages: {mode}",
        advice="echo madvise > /sys/kernel/mm/transparent_hugepage/enabled, as root."
        if mode == "never" else "",
    )  # fmt: skip


def _locked() -> Iterator[Finding]:
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    if limit == resource.RLIM_INFINITY:
        found = "no limit"
    else:
        found = f"{format_bytes(limit)} may be locked, which only preload=lock needs"
    yield Finding(topic="locked memory", state="ok", found=found)


def _extras() -> Iterator[Finding]:
    for module, extra in _EXTRAS.items():
        there = importlib.util.find_spec(module) is not None
        yield Finding(
            topic=f"extra {extra}",
            state="ok" if there else "advice",
            found=f"{module} is {'installed' if there else 'missing'}",
            advice="" if there else f"pip install 'pliant[{extra}]', where you want it.",
        )


def _profile() -> Iterator[Finding]:
    path = profile_path()
    if not path.exists():
        found, advice = "is missing", "pliant probe, so that plans are calibrated here."
    elif read_device(path).disturbance:
        found, advice = "was probed beside other programs", "pliant probe, when they have ended."
    else:
        found, advice = "is there", ""
    state: State = "advice" if advice else "ok"
    yield Finding(topic="profile", state=state, found=f"{path} {found}", advice=advice)
