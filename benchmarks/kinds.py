"""How fast are the kinds of products beside the uniform one, on each kernel path of this machine?

`python benchmarks/kinds.py` prints and writes `benchmarks/results/kinds.json`: weights per second
of one token times a matrix in cache, with uniform planes, planes of signs (by the engine's
kernels, and by shifts and additions alone), planes with a coefficient each, and ternary digits; and
the ratio of each path to the scalar definition in the same run.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from pliant._native import kernels
from pliant.bits.layout import plane_bytes, scale_bytes
from pliant.bits.ternary import ternary_bytes
from pliant.measurement import Measurement

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "kinds.json"

ROWS, COLUMNS = 2048, 2048
Product = Callable[[str, NDArray[np.float32]], NDArray[np.float32]]


def products() -> dict[str, Product]:
    """Each kind by its name, over random bits; scales of 0.01."""
    random = np.random.default_rng(20261126)
    planes = [random.integers(0, 256, plane_bytes(ROWS, COLUMNS), np.uint8) for _ in range(4)]
    digits = random.integers(0, 256, ternary_bytes(ROWS, COLUMNS), np.uint8)
    scales = np.full(scale_bytes(ROWS, COLUMNS) // 2, np.float16(0.01)).view(np.uint16)
    shape = (ROWS, COLUMNS, COLUMNS)

    def uniform(count: int) -> Product:
        return lambda isa, x: kernels.planes_int8(isa, planes[:count], scales, *shape, x)

    def general(count: int) -> Product:
        numbers = [scales] * count
        return lambda isa, x: kernels.coefficients_int8(
            isa, planes[:count], numbers, scales, *shape, x
        )

    def signs(count: int) -> Product:
        return lambda isa, x: kernels.signs_int8(isa, planes[:count], scales, *shape, x)

    # Three powers of two in each scale, as the codec has them nearly always.
    sums = np.full(scales.size, np.float16(21 / 2048)).view(np.uint16)
    codes = random.integers(-127, 128, (1, COLUMNS), np.int8)
    exponents = np.full((1, COLUMNS // 64), -7, np.int32)

    def shifted(count: int) -> Product:
        return lambda isa, x: kernels.shift_add(planes[:count], sums, *shape, codes, exponents)

    return {
        **{f"signs, {count} planes": signs(count) for count in (1, 2, 3, 4)},
        **{f"signs by shifts, {count} planes": shifted(count) for count in (2, 3, 4)},
        **{f"uniform, {count} planes": uniform(count) for count in (1, 2, 3, 4)},
        **{f"coefficients, {count} planes": general(count) for count in (1, 2, 3, 4)},
        "ternary": lambda isa, x: kernels.ternary_int8(isa, digits, scales, *shape, x),
    }


def rate(product: Product, isa: str, rounds: int) -> Measurement:
    """Weights per second; each round is one call, quantizing the token included."""
    x_TI = np.random.default_rng(1).standard_normal((1, COLUMNS)).astype(np.float32)
    product(isa, x_TI)
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        product(isa, x_TI)
        seconds.append(time.perf_counter() - start)
    return Measurement.of([ROWS * COLUMNS / second / 1e9 for second in seconds], "Gweight/s")


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=41)
    rounds = parser.parse_args().rounds
    paths = [path for path in kernels.paths() if path != "scalar"]
    lines: list[dict[str, Any]] = []
    for kind, product in products().items():
        scalar = rate(product, "scalar", 3)
        for path in paths:
            fast = rate(product, path, rounds)
            ratio = fast.median / scalar.median
            lines.append({"kind": kind, "path": path, "rate": fast, "over_scalar": ratio})
            print(f"{kind:25} {path:8} {fast.median:7.2f} [{fast.low:.2f}, {fast.high:.2f}] "
                  f"Gweight/s, {ratio:.0f} x scalar", flush=True)  # fmt: skip
    results = {
        "conditions": {
            "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
            "matrix": [ROWS, COLUMNS],
            "tokens": 1,
            "threads": 1,
            "load_average": os.getloadavg()[0],
        },
        "measurements": lines,
    }
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    partial = RESULTS.with_suffix(".partial")
    partial.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=2) + b"\n")
    partial.replace(RESULTS)


if __name__ == "__main__":
    main()
