"""Speeds of the kernels and of the storage of this machine, in small measurements of their own."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import numpy as np

from pliant import _native
from pliant.bits.layout import plane_bytes, scale_bytes
from pliant.runtime.threads import usable_threads

#: Bytes of a file that is read back from storage, and pieces it is read in.
_FILE_BYTES = 2**26
READ_CHUNKS = (2**12, 2**16, 2**20)
#: Edge of the fp32 matrices whose product gives the fp32 rate.
_EDGE = 768


def kernel_name() -> str:
    """The kernel path in use, such as `avx2`."""
    return str(_native.kernels.best())


def kernel_paths() -> list[str]:
    """All paths of this build on this processor, fastest first."""
    return list(_native.kernels.paths())


def default_threads() -> int:
    """Physical cores this process may use, affinity and quota counted."""
    return usable_threads(None)


def product_seconds(
    planes: int, rows: int, columns: int, tokens: int, threads: int, set_bytes: float, rounds: int
) -> float:
    """Seconds of one product, over as many matrices as `set_bytes` hold (at least one).

    Matrices are visited in turn, so a set beyond the caches comes from memory each time.
    Of `rounds` the lower quartile counts, which a busy machine disturbs least.
    """
    size = planes * plane_bytes(rows, columns) + scale_bytes(rows, columns)
    count = max(1, round(set_bytes / size))
    seconds = _native.kernels.measure_product(
        kernel_name(), planes, rows, columns, tokens, threads, count, rounds
    )
    return float(np.quantile(seconds, 0.25))


def phase_seconds(threads: int) -> float:
    """Seconds of a phase in which no thread has work: what a barrier costs; 0 for one thread."""
    if threads == 1:
        return 0.0
    return float(np.median(_native.kernels.measure_barrier(threads, 500, 7)))


def integer_rate(threads: int) -> tuple[float, str]:
    """Operations/s of int8 products at best, and how that was found.

    The dot-product instruction alone where it can be timed, or a product of many tokens.
    """
    rates = _native.kernels.measure_dot_peak(kernel_name(), threads, 5)
    if rates:
        return max(rates), f"dot products alone, {threads} threads"
    seconds = product_seconds(4, 512, 1024, 128, threads, 0.0, 5)
    return 2 * 512 * 1024 * 128 / seconds, f"a product of 128 tokens, {threads} threads"


def float_rate() -> float:
    """Operations/s of an fp32 matrix product by NumPy's library, best of five."""
    draw = np.random.default_rng(0)
    first, second = (draw.random((_EDGE, _EDGE), np.float32) for _ in range(2))
    best = np.inf
    for _ in range(6):
        start = time.perf_counter()
        first @ second
        best = min(best, time.perf_counter() - start)
    return float(2 * _EDGE**3 / best)


def storage_rates(folder: Path | None = None) -> dict[int, float]:
    """Bytes/s read from storage by size of pieces; empty where the system keeps files in memory.

    A file is written to `folder` (default: the temporary one), forgotten by the system, and read.
    """
    if not hasattr(os, "posix_fadvise"):
        return {}
    rates = {}
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        file.write(np.random.default_rng(0).bytes(_FILE_BYTES))
        file.flush()
        os.fsync(file.fileno())
        for chunk in READ_CHUNKS:
            # Small pieces of a part of the file, so that slow storage is not waited for long.
            size = min(_FILE_BYTES, chunk * 2048)
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            start = time.perf_counter()
            for offset in range(0, size, chunk):
                os.pread(file.fileno(), chunk, offset)
            rates[chunk] = size / (time.perf_counter() - start)
    return rates
