"""What does a second thread bring a small model, and what do its barriers cost?

`python benchmarks/threads.py` writes `benchmarks/results/threads.json`: nanoseconds of a phase with
nothing in it (the cost of one barrier), and microseconds per decoded token of small models with
each number of threads, interleaved. Small models are where barriers are the whole cost: `tale` is
the shape of the demo model, `15M` that of stories15M, both with random weights in 4 planes. About
half a minute; `--quick` takes 10 seconds.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from pliant._native import kernels
from pliant.measurement import Measurement
from pliant.recipes.bench import machine_text
from pliant.runtime.chunk import Chunk
from pliant.runtime.engine import Engine
from pliant.subnet import Subnet
from random_bits import RandomBits, llama

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "threads.json"

SHAPES = {
    "tale": llama(vocab_size=1024, hidden_size=128, num_blocks=5, num_heads=8, num_groups=4,
                  ffn_size=192),
    "15M": llama(vocab_size=32_000, hidden_size=288, num_blocks=6, num_heads=6, num_groups=6,
                 ffn_size=768),
    "60M": llama(vocab_size=32_000, hidden_size=640, num_blocks=10, num_heads=10, num_groups=5,
                 ffn_size=1792),
}  # fmt: skip


def token_seconds(engine: Engine, tokens: int) -> float:
    """Seconds per token, decoding `tokens` of them from an empty cache."""
    cache, token = engine.new_cache(tokens + 1), np.zeros(1, np.int32)
    engine.forward_chunk([Chunk(token, cache)])
    start = time.perf_counter()
    for _ in range(tokens):
        engine.forward_chunk([Chunk(token, cache)])
    return (time.perf_counter() - start) / tokens


def decoding(name: str, counts: list[int], rounds: int, tokens: int) -> list[dict[str, Any]]:
    """One line for each number of threads of one model."""
    artifact = RandomBits(SHAPES[name])
    subnet = Subnet.full(SHAPES[name], 4)
    engines = {count: Engine(artifact, subnet, count) for count in counts}
    samples = {count: list[float]() for count in counts}
    for _ in range(rounds):
        for count, engine in engines.items():
            samples[count].append(1e6 * token_seconds(engine, tokens))
    return [
        {
            "model": name,
            "threads": count,
            "token": Measurement.of(samples[count], "us"),
            "best": min(samples[count]),
            "faster_than_one": float(
                np.median(np.array(samples[counts[0]]) / np.array(samples[count]))
            ),
        }
        for count in counts
    ]


def table(barriers: dict[str, Measurement], lines: list[dict[str, Any]]) -> dict[str, Any]:
    """A row for each model and number of threads, the barriers below."""
    rows = [
        [
            line["model"], str(line["threads"]),
            f"{line['token'].median:.0f} [{line['token'].low:.0f}, {line['token'].high:.0f}] us",
            f"{line['faster_than_one']:.2f} x",
        ]
        for line in lines
    ]  # fmt: skip
    costs = "; ".join(
        f"a barrier of {count} threads takes {barrier.median:.0f} ns "
        f"[{barrier.low:.0f}, {barrier.high:.0f}]"
        for count, barrier in barriers.items()
        if count != "1"
    )
    columns = ["model", "threads", "a token", "beside one thread"]
    caption = (
        f"4 planes, random weights, kernels {kernels.best()}; {costs or 'no barriers'}; "
        f"{machine_text()}, load {os.getloadavg()[0]:.1f}."
    )
    return {"columns": columns, "align": "lrrr", "rows": rows, "caption": caption}


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=list(SHAPES))
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--quick", action="store_true", help="5 rounds of 60 tokens")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.tokens = 5, 60
    barriers = {
        str(count): Measurement.of(
            [1e9 * s for s in kernels.measure_barrier(count, 2000, options.rounds)], "ns"
        )
        for count in options.threads
    }
    for count, barrier in barriers.items():
        print(f"barrier of {count} threads: {barrier}")
    lines = []
    for name in options.models:
        for line in decoding(name, options.threads, options.rounds, options.tokens):
            lines.append(line)
            print(f"{name}, {line['threads']} threads: {line['token']} a token, "
                  f"best {line['best']:.1f}, {line['faster_than_one']:.2f} x")  # fmt: skip
    result = {
        "machine": machine_text(), "load_average": round(os.getloadavg()[0], 2),
        "kernels": kernels.best(), "table": table(barriers, lines), "barriers": barriers,
        "lines": lines,
    }  # fmt: skip
    options.output.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n")


if __name__ == "__main__":
    main()
