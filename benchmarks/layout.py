"""Does the layout of planes and scales decide how fast memory is read?

`python benchmarks/layout.py` writes `benchmarks/results/layout.json`. It reads memory, and does
nothing else, in the order in which a product would read a matrix laid out one way or another: each
plane a long run of its own or planes side by side in each tile; scales in a run of their own or
beside the codes, one for 64 columns or for 128; 1 to 4 places of each run advancing by turns in a
thread; lines asked for some distance ahead or left to the processor. Layouts take turns within a
round, so that a busy moment falls on all of them; a layout is compared with that of the format in
the same round.

It also counts which pages of eight planes in files come into memory when a product reads the first
k of them: those of the others must not.
"""

from __future__ import annotations

import argparse
import ctypes
import mmap
import os
import platform
import statistics
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from pliant._native import kernels
from pliant.bits.layout import plane_bytes, scale_bytes

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "layout.json"

GROUP_BYTES = 256  # one plane of 32 rows x 64 columns
SCALE_BYTES = 64  # their fp16 scales
ROWS, COLUMNS = 4096, 2048


def layouts(planes: int) -> dict[str, dict[str, Any]]:
    """What each layout reads: bytes of each run in a step, streams, prefetch distance."""
    codes = [GROUP_BYTES] * planes
    whole = [GROUP_BYTES * planes + SCALE_BYTES]
    format_is = {"step_bytes": [*codes, SCALE_BYTES], "streams": 1, "prefetch_bytes": 2048}
    named = {
        "runs": format_is,
        "tiles": {**format_is, "step_bytes": [GROUP_BYTES * planes, SCALE_BYTES]},
        "tiles, scales beside": {**format_is, "step_bytes": whole},
        "runs, group 128": {
            **format_is,
            "step_bytes": [2 * GROUP_BYTES] * planes + [SCALE_BYTES],
        },
    }
    named |= {f"runs, {streams} streams": {**format_is, "streams": streams} for streams in (2, 4)}
    named |= {
        f"runs, {distance} bytes ahead" if distance else "runs, nothing ahead": {
            **format_is,
            "prefetch_bytes": distance,
        }
        for distance in (0, 512, 1024, 4096)
    }
    return named


def compare(planes: int, threads: int, num_bytes: int, rounds: int) -> list[dict[str, Any]]:
    """GB/s of every layout, and its time per weight over that of the format's layout."""
    asked = layouts(planes)
    seconds: dict[str, list[float]] = {name: [] for name in asked}
    for _ in range(rounds):
        for name, layout in asked.items():
            timed = kernels.measure_walk(**layout, num_bytes=num_bytes, threads=threads, rounds=1)
            seconds[name] += timed
    lines = []
    for name, layout in asked.items():
        weights = 128 if name == "runs, group 128" else 64
        bytes_per_weight = sum(layout["step_bytes"]) / weights
        per_weight = [second * bytes_per_weight for second in seconds[name]]
        base = [second * sum(asked["runs"]["step_bytes"]) / 64 for second in seconds["runs"]]
        lines.append(
            {
                "layout": name,
                "planes": planes,
                "threads": threads,
                "gigabytes_per_second": num_bytes / min(seconds[name]) / 1e9,
                "time_per_weight": statistics.median(
                    mine / other for mine, other in zip(per_weight, base, strict=True)
                ),
            }
        )
    return lines


def resident_bytes(mapped: mmap.mmap) -> int:
    """Bytes of a mapped file that are in memory, by mincore(2)."""
    pages = -(-len(mapped) // mmap.PAGESIZE)
    flags = (ctypes.c_ubyte * pages)()
    start = ctypes.c_char.from_buffer(mapped)
    libc = ctypes.CDLL(None, use_errno=True)
    failed = libc.mincore(
        ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(len(mapped)), flags
    )
    del start
    if failed:
        raise OSError(ctypes.get_errno(), "mincore failed")
    return sum(flag & 1 for flag in flags) * mmap.PAGESIZE


def pages_of_planes(read: int, folder: Path) -> list[int]:
    """Resident bytes of each of eight planes after a product that reads the first `read`."""
    size = plane_bytes(ROWS, COLUMNS)
    maps = []
    for plane in range(8):
        path = folder / f"plane-{plane}"
        path.write_bytes(os.urandom(size))
        with path.open("r+b") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            # A private writable mapping shows its pages to ctypes, and none is written.
            maps.append(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY))
    arrays = [np.frombuffer(each, dtype=np.uint8) for each in maps[:read]]
    scales = np.full(scale_bytes(ROWS, COLUMNS) // 2, 0x2000, dtype=np.uint16)
    x = np.ones((1, COLUMNS), dtype=np.float32)
    kernels.planes_int8(kernels.best(), arrays, scales, ROWS, COLUMNS, COLUMNS, x)
    return [resident_bytes(each) for each in maps]


def main() -> None:
    """Measure, print and write."""
    arguments = _parser().parse_args()
    lines = [
        line
        for planes in arguments.planes
        for threads in arguments.threads
        for line in compare(planes, threads, arguments.megabytes * 2**20, arguments.rounds)
    ]
    with tempfile.TemporaryDirectory(dir=ROOT) as folder:
        pages = {str(read): pages_of_planes(read, Path(folder)) for read in (1, 2, 4)}
    rows = [
        [
            line["layout"],
            str(line["planes"]),
            str(line["threads"]),
            f"{line['gigabytes_per_second']:.1f}",
            f"{line['time_per_weight']:.2f}",
        ]
        for line in lines
    ]
    for row in rows:
        print(" | ".join(row))
    print(pages)
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs"
    load = os.getloadavg()[0]
    results = {
        "conditions": {"machine": machine, "load_average": load, "rounds": arguments.rounds},
        "table": {
            "columns": ["layout", "planes", "threads", "GB/s, best", "time per weight"],
            "align": "lrrrr",
            "rows": rows,
            "caption": "Reading alone; time per weight over that of `runs`, the format's layout "
            f"with 2048 bytes ahead, median of {arguments.rounds} rounds; {machine}, load "
            f"{load:.1f}.",
        },
        "layouts": lines,
        "resident_bytes_of_planes": pages,
    }
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    partial = RESULTS.with_suffix(".partial")
    partial.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=2) + b"\n")
    partial.replace(RESULTS)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--planes", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--megabytes", type=int, default=128, help="read in each measurement")
    return parser


if __name__ == "__main__":
    main()
