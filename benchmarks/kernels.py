"""How close are the product kernels to the memory and to the arithmetic of this machine?

`python benchmarks/kernels.py` writes `benchmarks/results/kernels.json`: for each plane count,
weights per second and bytes per second of a product with one token (as in decoding), over matrices
that come from memory and over one that stays in cache, and operations per second with many tokens
(as in prefill), over those of torch with fp32 weights where torch is installed. Beside each figure,
in the same minute, the machine's own limit is probed: the rate of plain reading, or of nothing but
dot-product instructions (on AVX2 maddubs, with nothing that sums its results); a busy machine
lowers both. It also writes how the time of a product grows with the tokens, from memory and from
cache, and says where n tokens take longer than n times one, or less than fewer tokens, by more
than the noise. The default run takes less than a minute; `--planes` and `--threads` choose others.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Iterator
from functools import cache
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
# At 8 planes 0.5 MB: in the second-level cache; too few rows for a path to change to tables.
CACHED_ROWS, CACHED_COLUMNS = 224, 2048
LOOKUP_ROWS = 1024  # share the work of making tables, as the rows of a model do
TOKEN_COUNTS = [*range(1, 11), 12, 13, 16, 17, 24, 32]
GROWTH_PLANES = {1, 2, 4, 8}
GROWTH_BYTES = 2**26  # twice a large cache
NOISE = 0.05  # of the growth of time with tokens


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


def cached(isa: str, num_planes: int) -> dict[str, Any]:
    """One token and one thread against a matrix in cache: what the arithmetic alone allows.

    `by_tables` is the same by the path that looks sums up, where there is one.
    """
    figures = {"bytes": cached_rate(isa, num_planes, CACHED_ROWS)}
    lookup = f"{isa.removesuffix('_lookup')}_lookup"
    if lookup in kernels.paths():
        figures["by_tables"] = cached_rate(lookup, num_planes, LOOKUP_ROWS)
    return figures


def cached_rate(isa: str, num_planes: int, rows: int) -> float:
    """GB/s of planes and scales of a small matrix that is multiplied again and again."""
    num_bytes = matrix_bytes(num_planes, rows, CACHED_COLUMNS)
    seconds = kernels.measure_product(isa, num_planes, rows, CACHED_COLUMNS, 1, 1, 1, 1000)
    return num_bytes / min(seconds) / 1e9


@cache
def torch_rate(threads: int) -> float | None:
    """Operations per second of torch's fp32 product of the prefill shape; None without torch."""
    try:
        import torch
    except ImportError:
        return None
    torch.set_num_threads(threads)
    x, weight = torch.ones(PREFILL_TOKENS, COLUMNS), torch.ones(ROWS, COLUMNS)
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        torch.nn.functional.linear(x, weight)
        seconds.append(time.perf_counter() - start)
    return 2 * ROWS * COLUMNS * PREFILL_TOKENS / min(seconds)


def prefill(isa: str, num_planes: int, threads: int, rounds: int) -> dict[str, Any]:
    """Many tokens against one matrix, and the rate of the dot-product instruction beside it."""
    peaks = kernels.measure_dot_peak(isa, threads, 30)
    seconds = kernels.measure_product(
        isa, num_planes, ROWS, COLUMNS, PREFILL_TOKENS, threads, 1, rounds
    )
    operations = 2 * ROWS * COLUMNS * PREFILL_TOKENS
    rate = Measurement.of([operations / second / 1e9 for second in seconds], "GOP/s")
    figures: dict[str, Any] = {"operations": rate}
    if peaks:
        figures |= {"peak": max(peaks) / 1e9, "share": rate.median * 1e9 / max(peaks)}
    torch = torch_rate(threads)
    if torch is not None:
        figures["over_torch"] = rate.median * 1e9 / torch
    return figures


def growth(isa: str, num_planes: int, rows: int, columns: int, num_bytes: int) -> dict[str, Any]:
    """Time of a product with some tokens over the time with one, for `num_bytes` of matrices."""
    count = max(1, num_bytes // matrix_bytes(num_planes, rows, columns))
    rounds = 4 if count > 1 else 100
    best = {
        tokens: min(
            kernels.measure_product(isa, num_planes, rows, columns, tokens, 1, count, rounds)
        )
        for tokens in TOKEN_COUNTS
    }
    ratios = {tokens: best[tokens] / best[1] for tokens in TOKEN_COUNTS}
    place = "memory" if count > 1 else "cache"
    return {
        "planes": num_planes,
        "shape": [rows, columns],
        "place": place,
        "ratios": {str(tokens): ratio for tokens, ratio in ratios.items()},
        "cliffs": cliffs(ratios),
    }


def cliffs(ratios: dict[int, float]) -> list[int]:
    """Token counts that take longer than one by one, or less time than fewer tokens."""
    found, before = [], 0.0
    for tokens, ratio in sorted(ratios.items()):
        if ratio > tokens * (1 + NOISE) or ratio < before * (1 - NOISE):
            found.append(tokens)
        before = max(before, ratio)
    return found


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
                "cached": cached(isa, num_planes),
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
        f"{line['cached']['bytes']:.1f}",
        f"{line['cached']['by_tables']:.1f}" if "by_tables" in line["cached"] else "",
        f"{many['operations'].median:.0f} [{many['operations'].low:.0f}, "
        f"{many['operations'].high:.0f}]",
        f"{many['share']:.0%}" if "share" in many else "",
        f"{many['over_torch']:.2f}" if "over_torch" in many else "",
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
        for num_planes in sorted(GROWTH_PLANES & set(arguments.planes))
        for shape in ((4096, 2048, GROWTH_BYTES), (CACHED_ROWS, CACHED_COLUMNS, 0))
    ]
    known = conditions(isa)
    results = {
        "conditions": known,
        "table": {
            "columns": ["planes", "threads", "decode, Gweight/s", "GB/s", "of the read rate",
                        "GB/s in cache, 1 thread", "by tables", "prefill, GOP/s",
                        "of the int8 peak", "over torch fp32"],
            "align": "rrrrrrrrrr",
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
    for line in ratios:
        if line["cliffs"]:
            print(
                f"{line['planes']} planes from {line['place']}: a cliff at {line['cliffs']} tokens"
            )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--isa", default=kernels.best(), choices=kernels.paths())
    parser.add_argument("--planes", type=int, nargs="+", default=list(range(1, 9)))
    parser.add_argument("--threads", type=int, nargs="+", default=[os.cpu_count() or 1])
    parser.add_argument("--rounds", type=int, default=5)
    return parser


if __name__ == "__main__":
    main()
