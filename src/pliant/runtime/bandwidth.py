"""`read_rate`: how fast this machine reads memory right now, the limit of decoding."""

from __future__ import annotations

from pathlib import Path

import psutil

from pliant import _native
from pliant.errors import UsageError
from pliant.measurement import Measurement, parse_bytes
from pliant.runtime.threads import usable_threads

#: Far beyond the caches of most machines.
_LEAST_BYTES = 2**28
#: Times the largest cache, so that next to nothing of one round is found there in the next.
_CACHE_FACTOR = 4
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


def read_rate(threads: int, rounds: int = 5) -> Measurement:
    """GB/s (10^9 bytes) of plain reading with `threads` threads, four streams each.

    The memory read is larger than the caches and is read once in each of `rounds`; the threads are
    placed as those of an engine. Raises `UsageError` for thread or round counts that cannot be.
    """
    threads = usable_threads(threads)
    if rounds < 1:
        raise UsageError(f"{rounds} rounds of reading were asked for; use at least 1.")
    size = probe_bytes()
    seconds = _native.kernels.measure_read(size, threads, rounds)
    conditions = "1 thread" if threads == 1 else f"{threads} threads"
    rates = [size / second / 1e9 for second in seconds]
    return Measurement.of(rates, "GB/s", "read bandwidth", conditions)


def probe_bytes() -> int:
    """Bytes that `read_rate` reads: four times the largest cache, within the memory to be had."""
    wanted = max(_LEAST_BYTES, _CACHE_FACTOR * largest_cache_bytes())
    return min(wanted, max(2**24, int(psutil.virtual_memory().available) // 4))


def largest_cache_bytes() -> int:
    """Bytes of the last-level cache as the system tells them; 0 where it does not."""
    sizes = [0]
    for file in _CACHES.glob("index*/size"):
        try:
            # Linux writes `32768K` and means 1024.
            sizes.append(parse_bytes(file.read_text().strip() + "iB"))
        except (OSError, UsageError):
            continue
    return max(sizes)
