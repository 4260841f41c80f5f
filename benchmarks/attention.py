"""What does a long context cost a decoded token, beside the bytes of cache it makes it read?

`python benchmarks/attention.py` writes `benchmarks/results/attention.json`. A model with the
attention of Llama-3.2-1B (32 query heads in 8 groups of 64) and hardly anything else decodes behind
contexts of growing length, with each type of cache and number of threads. What a token takes more
than behind an empty context is put beside the time that its cache bytes take at the rate of plain
reading, probed in the same minute. Weights are random bits: speed does not depend on them.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from pliant._native import kernels
from pliant.costs import decode_traffic
from pliant.measurement import Measurement
from pliant.runtime.chunk import Chunk
from pliant.runtime.engine import CACHE_VALUE_BYTES, CacheType, Engine
from pliant.subnet import Subnet
from random_bits import RandomBits, llama

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "attention.json"

CONTEXTS = [1, 512, 2048, 8192]
READ_BYTES = 2**27
SPEC = llama(
    vocab_size=64, hidden_size=2048, num_blocks=4, num_heads=32, num_groups=8, head_dim=64,
    ffn_size=64, max_context=2**14,
)  # fmt: skip


def seconds_per_token(engine: Engine, cache: Any, length: int, runs: int) -> list[float]:
    """Seconds of single tokens decoded behind the first `length` entries of a copy of a cache."""
    token, seconds = np.zeros(1, np.int32), []
    cache = cache.clone()
    for _ in range(runs):
        cache.truncate(length)
        start = time.perf_counter()
        engine.forward_chunk([Chunk(token, cache, logits="none")])
        seconds.append(time.perf_counter() - start)
    return seconds


def measured(cache_type: CacheType, threads: int, runs: int) -> Iterator[dict[str, Any]]:
    """One line for each context."""
    subnet = Subnet.full(SPEC, 1)
    with Engine(RandomBits(SPEC), subnet, threads, cache_type=cache_type) as engine:
        cache = engine.new_cache(CONTEXTS[-1] + 1)
        tokens = np.random.default_rng(0).integers(0, SPEC.vocab_size, CONTEXTS[-1], np.int32)
        start = time.perf_counter()
        engine.forward_chunk([Chunk(tokens, cache, logits="none")])
        prefill = time.perf_counter() - start
        rate = READ_BYTES / min(kernels.measure_read(READ_BYTES, threads, 5))
        samples = {length: list[float]() for length in CONTEXTS}
        for _ in range(3):  # interleaved, so that a busy moment hits all alike
            for length in reversed(CONTEXTS):
                samples[length] += seconds_per_token(engine, cache, length, runs)
        empty = float(np.median(samples[CONTEXTS[0]]))
        for length in CONTEXTS:
            num_bytes = decode_traffic(subnet, length, CACHE_VALUE_BYTES[cache_type]).cache_bytes
            added = float(np.median(samples[length])) - empty
            yield {
                "cache": cache_type,
                "threads": threads,
                "context": length,
                "token": Measurement.of([1e3 * s for s in samples[length]], "ms"),
                "cache_bytes": num_bytes,
                "read_gb_per_second": rate / 1e9,
                "share_of_read_rate": num_bytes / added / rate if length > 1 else None,
                "prefill_seconds": prefill,
            }


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    lines = []
    for threads in options.threads:
        for cache_type in CACHE_VALUE_BYTES:
            for line in measured(cache_type, threads, options.runs):
                lines.append(line)
                share = line["share_of_read_rate"]
                print(
                    f"{cache_type:8} {threads} threads, context {line['context']:5}: "
                    f"{line['token']}" + (f", {share:.0%} of the read rate" if share else "")
                )
    result = {
        "conditions": {
            "machine": platform.processor() or platform.machine(),
            "cpus": os.cpu_count(),
            "kernels": kernels.best(),
            "load": os.getloadavg()[0],
        },
        "lines": lines,
    }
    options.output.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1))


if __name__ == "__main__":
    main()
