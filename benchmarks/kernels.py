"""How close are the product kernels to the memory and to the arithmetic of this machine?

`python benchmarks/kernels.py` writes `benchmarks/results/kernels.json`: for each plane count,
weights per second and bytes per second of a product with one token (as in decoding), over matrices
that come from memory, and operations per second with many tokens (as in prefill). Beside each
figure, in the same minute, the machine's own limit is probed: the rate of plain reading, or of
nothing but dot-product instructions; a busy machine lowers both. It also writes how the time of a
product grows with the tokens, from memory and from cache.
"""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from pliant._native import kernels
from pliant.bits.layout import plane_bytes, scale_bytes
from pliant.measurement import Measurement

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "kernels.json"

ROWS, COLUMNS = 8192, 2048  # the up projection of a model of 1 B weights
PREFILL_TOKENS = 504
READ_BYTES = 2**28  # far beyond every cache
TOKEN_COUNTS = [1, 2, 3, 4, 5, 6, 8, 12, 16, 24]


def matrix_bytes(num_planes: int, rows: int, columns: int) -> int:
    """Bytes that a product with `num_planes` planes reads: planes and scales."""
    return num_planes * plane_bytes(rows, columns) + scale_bytes(rows, columns)


def read_rate(threads: int) -> float:
    """The best of three readings of memory, in bytes per second."""
    return READ_BYTES / min(kernels.measure_read(READ_BYTES, threads, 3))


def decode(isa: str, num_planes: int, threads: int, rounds: int) -> dict[str, Any]:
    """One token against matrices from memory, and the rate of reading around it."""
    num_bytes = matrix_bytes(num_planes, ROWS, COLUMNS)
    before = read_rate(threads)
    seconds = kernels.measure_product(
        isa, num_planes, ROWS, COLUMNS, 1, threads, READ_BYTES // num_bytes + 1, rounds
    )
    limit = (before + read_rate(threads)) / 2
    rate = Measurement.of([num_bytes / second / 1e9 for second in seconds], "GB/s")
    return {
        "weights": Measurement.of(
            [ROWS * COLUMNS / second / 1e9 for second in seconds], "Gweight/s"
        ),
        "bytes": rate,
        "read_limit": limit / 1e9,
        "share": rate.median * 1e9 / limit,
    }


def prefill(isa: str, num_planes: int, threads: int, rounds: int) -> dict[str, Any]:
    """Many tokens against one matrix, and the rate of the dot-product instruction beside it."""
    peaks = kernels.measure_dot_peak(isa, threads, 100)
    seconds = kernels.measure_product(
        isa, num_planes, ROWS, COLUMNS, PREFILL_TOKENS, threads, 1, rounds
    )
    operations = 2 * ROWS * COLUMNS * PREFILL_TOKENS
    rate = Measurement.of([operations / second / 1e9 for second in seconds], "GOP/s")
    if not peaks:
        return {"operations": rate}
    return {
        "operations": rate,
        "peak": max(peaks) / 1e9,
        "share": rate.median * 1e9 / max(peaks),
    }


def growth(isa: str, num_planes: int, rows: int, columns: int, num_bytes: int) -> dict[str, Any]:
    """Time of a product with some tokens over the time with one, for `num_bytes` of matrices."""
    count = max(1, num_bytes // matrix_bytes(num_planes, rows, columns))
    rounds = 9 if count > 1 else 300
    best = {
        tokens: min(
            kernels.measure_product(isa, num_planes, rows, columns, tokens, 1, count, rounds)
        )
        for tokens in TOKEN_COUNTS
    }
    return {
        "planes": num_planes,
        "shape": [rows, columns],
        "place": "memory" if count > 1 else "cache",
        "ratios": {str(tokens): best[tokens] / best[1] for tokens in TOKEN_COUNTS},
    }


def measured(
    isa: str, planes: list[int], threads: list[int], rounds: int
) -> Iterator[dict[str, Any]]:
    """One line for each plane count and number of threads."""
    for num_planes in planes:
        for num_threads in threads:
            line = {
                "planes": num_planes,
                "threads": num_threads,
                "decode": decode(isa, num_planes, num_threads, rounds),
                "prefill": prefill(isa, num_planes, num_threads, max(3, rounds // 2)),
            }
            print(" | ".join(cells(line)), flush=True)
            yield line


def cells(line: dict[str, Any]) -> list[str]:
    """The texts of one row of the table."""
    fast, many = line["decode"], line["prefill"]
    return [
        str(line["planes"]),
        str(line["threads"]),
        f"{fast['weights'].median:.1f} [{fast['weights'].low:.1f}, {fast['weights'].high:.1f}]",
        f"{fast['bytes'].median:.1f}",
        f"{fast['share']:.0%}",
        f"{many['operations'].median:.0f} [{many['operations'].low:.0f}, "
        f"{many['operations'].high:.0f}]",
        f"{many['share']:.0%}" if "share" in many else "",
    ]


def conditions(isa: str) -> dict[str, Any]:
    """Where and how this was measured."""
    return {
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        "kernels": isa,
        "matrix": [ROWS, COLUMNS],
        "prefill_tokens": PREFILL_TOKENS,
        "load_average": os.getloadavg()[0],
    }


def main() -> None:
    """Measure, print and write."""
    arguments = _parser().parse_args()
    isa = arguments.isa
    lines = list(measured(isa, arguments.planes, arguments.threads, arguments.rounds))
    ratios = [
        growth(isa, num_planes, *shape)
        for num_planes in arguments.planes
        for shape in ((4096, 2048, READ_BYTES), (512, 512, 0))
    ]
    known = conditions(isa)
    results = {
        "conditions": known,
        "table": {
            "columns": ["planes", "threads", "decode, Gweight/s", "GB/s", "of the read rate",
                        "prefill, GOP/s", "of the int8 peak"],
            "align": "rrrrrrr",
            "rows": [cells(line) for line in lines],
            "caption": f"{ROWS} x {COLUMNS}, {known['kernels']}; one token from memory, "
            f"{PREFILL_TOKENS} tokens; median [spread]; limits probed beside each figure; "
            f"{known['machine']}, load {known['load_average']:.1f}.",
        },
        "measurements": msgspec.to_builtins(lines),
        "time_over_tokens": ratios,
    }  # fmt: skip
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    partial = RESULTS.with_suffix(".partial")
    partial.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=2) + b"\n")
    partial.replace(RESULTS)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--isa", default=kernels.best(), choices=kernels.paths())
    parser.add_argument("--planes", type=int, nargs="+", default=list(range(1, 9)))
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=7)
    return parser


if __name__ == "__main__":
    main()
