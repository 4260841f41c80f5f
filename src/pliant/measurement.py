"""Numbers with a unit, a spread and their conditions; sizes and durations as people write them."""

from __future__ import annotations

import math
import re
import resource
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from pliant.errors import OutOfSpaceError, UsageError

_BYTE_UNITS = {
    "": 1, "b": 1,
    "k": 10**3, "kb": 10**3, "kib": 2**10,
    "m": 10**6, "mb": 10**6, "mib": 2**20,
    "g": 10**9, "gb": 10**9, "gib": 2**30,
    "t": 10**12, "tb": 10**12, "tib": 2**40,
}  # fmt: skip
_SECOND_UNITS = {"": 1.0, "ms": 1e-3, "s": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_QUANTITY = re.compile(r"\s*(?P<number>\d+(?:\.\d+)?|\.\d+)\s*(?P<unit>[A-Za-z]*)\s*")


class Progress(Protocol):
    """What a long job calls to say how far it is; must be cheap and must not raise."""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """`done` of `total` steps of `stage` are finished; a new name begins a new stage."""


def silent(stage: str, done: int, total: int) -> None:
    """The `Progress` that says nothing."""


class Measurement(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A measured number: median, spread, count of samples, unit, and the conditions it holds for.

    `str()` reads `decode 21.3 token/s [20.9, 21.8] n=9, 2 threads` where `name` is `decode` and
    `conditions` is `2 threads`; `low` and `high` are the smallest and largest sample.
    """

    median: float
    low: float
    high: float
    n: int
    unit: str
    name: str = ""
    conditions: str = ""

    def __post_init__(self) -> None:
        if self.n < 1 or not self.low <= self.median <= self.high:
            raise UsageError(
                f"A measurement needs a sample and low <= median <= high; got n={self.n}, "
                f"{self.low} <= {self.median} <= {self.high}."
            )

    @classmethod
    def of(
        cls, samples: Sequence[float], unit: str, name: str = "", conditions: str = ""
    ) -> Measurement:
        """The measurement that summarises `samples`, all in `unit`; none of them may be NaN."""
        if not samples or any(math.isnan(sample) for sample in samples):
            raise UsageError(f"A measurement needs samples that are numbers; got {list(samples)}.")
        return cls(
            median=statistics.median(samples),
            low=min(samples),
            high=max(samples),
            n=len(samples),
            unit=unit,
            name=name,
            conditions=conditions,
        )

    def __str__(self) -> str:
        text = f"{_digits(self.median)} {self.unit}"
        if self.n > 1:
            text += f" [{_digits(self.low)}, {_digits(self.high)}] n={self.n}"
        text = f"{self.name} {text}" if self.name else text
        return f"{text}, {self.conditions}" if self.conditions else text


def repeat(work: Callable[[], float], unit: str, times: int, name: str = "") -> Measurement:
    """`work()` measured `times` times; it returns each sample in `unit`."""
    return Measurement.of([work() for _ in range(times)], unit, name)


def _digits(value: float) -> str:
    """Three significant digits, without an exponent for numbers people read."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    # Rounded first, because 0.9996 has three digits as 1.00 and four as 1.000.
    value = float(f"{value:.3g}")
    decimals = 2 - math.floor(math.log10(abs(value)))
    return f"{value:.{min(max(decimals, 0), 9)}f}"


def parse_bytes(text: str) -> int:
    """Bytes of a size such as `6MB` (10^6), `512MiB` (2^20), `2GB`, `800 kB` or `4096`."""
    match = _QUANTITY.fullmatch(text)
    factor = _BYTE_UNITS.get(match["unit"].lower()) if match else None
    if match is None or factor is None:
        raise UsageError(f"{text!r} is not a size; write it like 6MB, 512MiB or 2GB.")
    count = float(match["number"]) * factor
    if count < 1:
        raise UsageError(f"{text!r} is a size of no bytes; write it like 6MB, 512MiB or 2GB.")
    return int(count)


def format_bytes(num_bytes: float) -> str:
    """A size in decimal units and three digits: `6.02 MB`."""
    for unit, factor in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        # The last digit of the unit below must not round up to 1000.
        if abs(num_bytes) >= 0.9995 * factor:
            return f"{_digits(num_bytes / factor)} {unit}"
    return f"{num_bytes:.0f} B"


def parse_seconds(text: str) -> float:
    """Seconds of a duration such as `90`, `30s`, `10min`, `1.5h` or `1h30min`."""
    pieces = re.findall(r"(\d+(?:\.\d+)?|\.\d+)\s*([A-Za-z]*)", text)
    whole = "".join(number + unit for number, unit in pieces) == re.sub(r"\s", "", text)
    factors = [_SECOND_UNITS.get(unit.lower()) for _, unit in pieces]
    seconds = sum(
        float(number) * (factor or 0)
        for (number, _), factor in zip(pieces, factors, strict=True)
    )  # fmt: skip
    if not whole or None in factors or seconds <= 0:
        raise UsageError(f"{text!r} is not a duration; write it like 90s, 10min or 1h30min.")
    return seconds


def format_seconds(seconds: float) -> str:
    """A duration as people say it: `38 ms`, `1.42 s`, `3 min 05 s`, `2 h 10 min`."""
    if seconds < 1:
        return f"{_digits(seconds * 1e3)} ms"
    if seconds < 99.95:
        return f"{_digits(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 100:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def parse_ratio(text: str) -> float:
    """A relative change as a number: `+5%` and `5%` are 0.05, `0.05` is itself."""
    match = re.fullmatch(r"\s*\+?\s*(\d+(?:\.\d+)?|\.\d+)\s*(%?)\s*", text)
    if match is None:
        raise UsageError(f"{text!r} is not a relative loss; write it like +5% or 0.05.")
    return float(match[1]) / (100 if match[2] else 1)


class MemoryLimit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The most memory a job was given, in bytes of resident memory of the whole process."""

    num_bytes: int

    @classmethod
    def parse(cls, text: str) -> MemoryLimit:
        """The limit written like `2GB`."""
        return cls(parse_bytes(text))

    def require(self, num_bytes: int, purpose: str) -> None:
        """Raise `OutOfSpaceError` where `purpose` needs more than the limit."""
        if num_bytes > self.num_bytes:
            raise OutOfSpaceError(
                f"{purpose} needs {format_bytes(num_bytes)} of memory and "
                f"{format_bytes(self.num_bytes)} were given; raise the limit."
            )

    def __str__(self) -> str:
        return format_bytes(self.num_bytes)


def peak_memory_bytes() -> int:
    """The most resident memory this process has held so far, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        # ru_maxrss would include the peak of the parent that forked us; VmHWM begins anew at exec.
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
