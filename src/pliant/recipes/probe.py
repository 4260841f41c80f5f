"""`pliant probe`: this machine as a device, measured in less than a minute."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from pliant.costs.calibration import Calibration, ProductPoint, Terms
from pliant.costs.device import Device, Figure, StorageRate, user_folder
from pliant.measurement import Progress, silent
from pliant.recipes.bench import machine_text
from pliant.recipes.probe_engine import (
    CACHE_MODELS,
    PROBED_CACHES,
    fitted,
    timed_steps,
    with_cache,
)
from pliant.runtime.bandwidth import largest_cache_bytes, read_rate
from pliant.runtime.kernel_speed import (
    default_threads,
    float_rate,
    integer_rate,
    kernel_name,
    phase_seconds,
    product_seconds,
    storage_rates,
)
from pliant.runtime.memory_limit import usable_memory
from pliant.runtime.other_programs import OtherPrograms

#: Name of the profile of the machine at hand, and of its file in the user's folder.
THIS = "this"
#: Rows and columns of the matrices that kernels are timed on: a matrix of a model of 0.5 B.
_ROWS, _COLUMNS = 1024, 1024
#: Tokens whose products are timed, from memory (1) and from the cache.
_TOKENS = (2, 4, 8, 16, 32, 64, 128, 256)
#: Sets of matrices: within the cache of a core, within the last one, beyond it.
_CORE_BYTES, _SHARED_BYTES = 2**18, 2**22
#: The set for many tokens: arithmetic is the limit, the fewer weights the sooner it is done.
_MANY_BYTES = 2**20
_PLANES = range(1, 9)
#: Times that all kernels are timed, and steps with other caches than float16.
_PASSES = 2
_CACHE_ROUNDS = 3


def probe(threads: int | None = None, progress: Progress = silent) -> Device:
    """Measure this machine: rates, kernels by planes and tokens, the rest of a step, memory.

    Threads are 1 and `threads` (default: the cores this process may use). Raises `UsageError` for
    a number of threads that cannot be.
    """
    most = threads or default_threads()
    counts = sorted({1, most})
    today = datetime.now(UTC).date().isoformat()
    total, done = 3 + 2 * len(counts), 0
    others = OtherPrograms()

    def advance(what: str) -> None:
        nonlocal done
        done += 1
        progress(what, done, total)

    reads = {count: read_rate(count, rounds=3).median * 1e9 for count in _read_counts(most)}
    advance("reading memory")
    integer, how = integer_rate(most)
    rates = {
        "int8": Figure(value=integer, source=how, date=today),
        "fp32": Figure(value=float_rate(), source="a matrix product by NumPy", date=today),
    }
    storage = storage_rates()
    advance("arithmetic and storage")
    calibrations: list[Calibration] = []
    for count in counts:
        bare = kernel_table(count, calibrations[0] if calibrations else None)
        advance(f"kernels, {count} threads")
        found = fitted(bare, timed_steps(count))
        for bits in PROBED_CACHES:
            samples = timed_steps(count, bits, _CACHE_ROUNDS, CACHE_MODELS)
            found = with_cache(found, bits, samples)
        calibrations.append(found)
        advance(f"steps, {count} threads")
    memory = usable_memory()
    runtime = runtime_bytes()
    advance("memory")
    return Device(
        name=THIS, title=machine_text(), kind="this", kernels=kernel_name(),
        memory=Figure(value=memory.total_bytes, source="the system", date=today),
        bandwidth=Figure(
            value=max(reads.values()), source="reading alone, four streams", date=today
        ),
        rates=rates,  # type: ignore[arg-type]
        read_rates={
            str(count): Figure(value=rate, source=f"{count} threads", date=today)
            for count, rate in reads.items()
        },
        usable_memory_bytes=memory.usable_bytes, runtime_bytes=runtime,
        storage=tuple(
            StorageRate(chunk_bytes=chunk, bytes_per_second=rate)
            for chunk, rate in storage.items()
        ),
        calibrations=tuple(calibrations), notes=f"probed {today} on {platform.node()}",
        others_share=round(others.share(), 3),
    )  # fmt: skip


def _read_counts(most: int) -> list[int]:
    """1, 2, 4, ... threads and the most."""
    counts, count = {1, most}, 2
    while count < most:
        counts.add(count)
        count *= 2
    return sorted(counts)


def kernel_table(threads: int, alone: Calibration | None = None) -> Calibration:
    """Products by planes, tokens and where they come from, and a barrier; nothing else yet.

    `alone` is the table of one thread, than which more threads are no slower.
    """
    memory = max(3 * 2**24, 5 * largest_cache_bytes() // 2)
    sizes = [(1, size) for size in (_CORE_BYTES * threads, _SHARED_BYTES, memory)]
    sizes += [(tokens, _MANY_BYTES) for tokens in _TOKENS]
    passes = [
        [_point(planes, tokens, size, threads) for planes in _PLANES for tokens, size in sizes]
        for _ in range(_PASSES)
    ]
    # A slow moment of the machine falls on one pass.
    points = [min(found, key=lambda point: point.seconds) for found in zip(*passes, strict=True)]
    points = plausible(points, alone.products if alone else points)
    return Calibration(
        threads=threads,
        kernels=kernel_name(),
        products=tuple(points),
        seconds=Terms(product=1.0, phase=phase_seconds(threads)),
    )


def plausible(points: Sequence[ProductPoint], alone: Sequence[ProductPoint]) -> list[ProductPoint]:
    """The points without what only a disturbance can explain.

    Fewer planes never take longer than more, nor several threads longer than one (`alone`, point
    by point): the kernels are made so, and benchmarks hold them to it.
    """
    least: dict[tuple[int, float], float] = {}
    found = list(points)
    for place in sorted(range(len(points)), key=lambda place: -points[place].planes):
        point = points[place]
        key = (point.tokens, point.set_bytes)
        seconds = min(least.get(key, point.seconds), point.seconds, alone[place].seconds)
        least[key] = seconds
        found[place] = msgspec.structs.replace(point, seconds=seconds)
    return found


def _point(planes: int, tokens: int, size: float, threads: int) -> ProductPoint:
    """One product timed; small sets take smaller matrices, so that there are several."""
    rows = _ROWS if size >= _SHARED_BYTES else _ROWS // 4
    rounds = 3 if tokens >= 32 or size > _SHARED_BYTES else 7
    seconds = product_seconds(planes, rows, _COLUMNS, tokens, threads, size, rounds)
    return ProductPoint(
        planes=planes, tokens=tokens, set_bytes=float(size), seconds=seconds / (rows * _COLUMNS)
    )


def runtime_bytes() -> int:
    """Most resident bytes of a process with an engine of next to no weights.

    It is another process, so that what this one has loaded does not count.
    """
    done = subprocess.run(
        [sys.executable, "-m", "pliant.recipes.empty_engine"],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    return int(json.loads(done.stdout)["peak_bytes"])


def profile_path() -> Path:
    """Where the profile of this machine lies."""
    return user_folder() / f"{THIS}.json"


def save_device(device: Device, path: Path | None = None) -> Path:
    """Write a profile, under a temporary name first; returns where it is."""
    path = path or profile_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(msgspec.json.format(msgspec.json.encode(device), indent=1))
    partial.replace(path)
    return path
