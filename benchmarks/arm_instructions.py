"""How many instructions do products and tables take on ARM without dot products?

`python benchmarks/arm_instructions.py` cross-compiles both kernels for one token (Debian:
g++-aarch64-linux-gnu), finds their inner loops in the assembly and prints, for each plane count,
the instructions for 32 rows x 64 columns. A count, not a time: `asimd` chooses by it because no
such processor was at hand (docs/how_it_works/kernel_paths.md). Takes about 10 seconds.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from pliant.bits import MAX_PLANES

NATIVE = Path(__file__).parents[1] / "native"
COMPILER = "aarch64-linux-gnu-g++"
FLAGS = ("-std=c++20", "-O3", "-ffp-contract=off", "-march=armv8-a", f"-I{NATIVE}")
ROW_VECTORS = 8  # of four rows, which products take one after the other
# With eight planes the loop of tables is no longer one piece of code.
COUNTS = range(1, MAX_PLANES)

PRODUCTS = """
#include "kernels/planes_int8.h"
#include "kernels/simd_asimd.h"
namespace pliant {
template <int kPlanes>
__attribute__((noinline)) void counted(const PlaneMatrix& m, const Int8Activations& x, float* y) {
  PlanesInt8<Asimd, kPlanes>::multiply_one_token(m, x, 0, y);
}
"""
TABLES = """
#include "kernels/lookup_asimd.cpp"
namespace pliant {
template <int kPlanes>
__attribute__((noinline)) void counted(const PlaneMatrix& m, const TokenTables& x, float* y) {
  look_up_tile<LookupAsimd, kPlanes>(m, 0, x, y);
}
"""


def loops(source: str, argument: str) -> dict[int, list[list[str]]]:
    """Loops of each instantiation of `counted`, inner ones first, as lists of mnemonics."""
    calls = "".join(f"template void counted<{planes}>(const PlaneMatrix&, const {argument}&, "
                    "float*);\n" for planes in COUNTS)  # fmt: skip
    command = [COMPILER, *FLAGS, "-x", "c++", "-S", "-", "-o", "-"]
    done = subprocess.run(
        command, input=source + calls + "}\n", capture_output=True, text=True, check=True
    )
    found: dict[int, list[list[str]]] = {planes: [] for planes in COUNTS}
    planes, labels, body = 0, dict[str, int](), list[str]()
    for line in done.stdout.splitlines():
        if start := re.match(r"_Z\w+:", line):
            name = re.search(r"(?:counted|look_up_tile)\w*Li(\d)E", start[0])
            planes, labels, body = int(name[1]) if name else 0, {}, []
        elif label := re.match(r"(\.L\w+):", line):
            labels[label[1]] = len(body)
        elif re.match(r"\t[a-z]", line):
            body.append(line.split("\t")[1])
            target = re.search(r"\.L\w+", line)
            if planes and body[-1].startswith(("b", "cb")) and target and target[0] in labels:
                found[planes].append(body[labels[target[0]] :])
    return found


def product_count(bodies: list[list[str]]) -> int:
    """A loop over the two chunks of a group within the loop over groups, for each row vector."""
    chunk, group = [len(body) for body in bodies if "smlal" in body][:2]
    return ROW_VECTORS * (2 * chunk + group - chunk)


def table_count(bodies: list[list[str]]) -> int:
    """The loop over groups holds the look-ups of both chunks."""
    return next(len(body) for body in bodies if "tbl" in body)


def main() -> int:
    """Count and print."""
    try:
        products, tables = loops(PRODUCTS, "Int8Activations"), loops(TABLES, "TokenTables")
    except FileNotFoundError:
        print(f"{COMPILER} is not installed (Debian: g++-aarch64-linux-gnu)", file=sys.stderr)
        return 1
    print("planes   products   tables")
    for planes in COUNTS:
        print(f"{planes:6} {product_count(products[planes]):10} {table_count(tables[planes]):8}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
