"""What does attention over a long context cost, beside the bytes of cache it reads?

`python benchmarks/attention.py` writes `benchmarks/results/attention.json`. Models with the
attention of Qwen2.5-0.5B (14 query heads in 2 groups of 64) and of Llama-3.2-1B (32 in 8) and
hardly anything else decode behind contexts of growing length, with each type of cache and number of
threads. What a token takes more than behind an empty context is put beside the time that its cache
bytes take at the rate of plain reading, probed in the same minute, and is given as billions of
multiplications (GMAC) a second, `2 * heads * head_dim` for each cached token and block. Prefill is
the same of a chunk of 128 tokens. Weights are random bits: speed does not depend on them. About 2
minutes; `--quick` takes 40 seconds (contexts to 4096, fp16 and int8 caches).
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from pliant._native import kernels
from pliant.bits.cache import CACHE_BITS, CacheFormat, CacheType
from pliant.costs import decode_traffic
from pliant.measurement import Measurement
from pliant.recipes.bench import machine_text
from pliant.runtime.bandwidth import read_rate
from pliant.runtime.chunk import Chunk
from pliant.runtime.engine import Engine
from pliant.spec import ModelSpec
from pliant.subnet import Subnet
from random_bits import RandomBits, llama

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "attention.json"

CONTEXTS = [1, 512, 2048, 8192]
QUICK_CONTEXTS = [1, 512, 1024, 4096]
CHUNK = 128
SHAPES = {
    "Qwen2.5-0.5B": llama(vocab_size=64, hidden_size=896, num_blocks=2, num_heads=14, num_groups=2,
                          head_dim=64, ffn_size=64, max_context=2**14),
    "Llama-3.2-1B": llama(vocab_size=64, hidden_size=2048, num_blocks=2, num_heads=32,
                          num_groups=8, head_dim=64, ffn_size=64, max_context=2**14),
}  # fmt: skip


def step_seconds(engine: Engine, cache: Any, length: int, tokens: int, runs: int) -> list[float]:
    """Seconds of steps of some tokens behind the first `length` entries of a cache."""
    chunk, seconds = np.zeros(tokens, np.int32), []
    for _ in range(runs):
        cache.truncate(length)
        start = time.perf_counter()
        engine.forward_chunk([Chunk(chunk, cache, logits="none")])
        seconds.append(time.perf_counter() - start)
    return seconds


def measured(
    shape: str, cache_type: CacheType, threads: int, contexts: list[int], runs: int
) -> Iterator[dict[str, Any]]:
    """One line for each context."""
    spec = SHAPES[shape]
    subnet, longest = Subnet.full(spec, 1), contexts[-1]
    with Engine(RandomBits(spec), subnet, threads, cache_type=cache_type) as engine:
        cache = engine.new_cache(longest + CHUNK)
        tokens = np.random.default_rng(0).integers(0, spec.vocab_size, longest, np.int32)
        engine.forward_chunk([Chunk(tokens, cache, logits="none")])
        rate = 1e9 * read_rate(threads).median
        decode = {length: list[float]() for length in contexts}
        prefill = {length: list[float]() for length in contexts}
        full = cache.clone()
        for _ in range(3):  # interleaved, so that a busy moment hits all alike
            for length in reversed(contexts):
                # Steps cut the cache down to where they begin; each length has the same entries.
                cache = full.clone()
                decode[length] += step_seconds(engine, cache, length, 1, runs)
                prefill[length] += step_seconds(engine, cache, length, CHUNK, 1)
        for length in contexts:
            num_bytes = decode_traffic(
                subnet, length, cache=CacheFormat.of_type(cache_type)
            ).cache_bytes
            yield {
                "shape": shape,
                "cache": cache_type,
                "threads": threads,
                "context": length,
                "token": Measurement.of([1e3 * s for s in decode[length]], "ms"),
                "cache_bytes": num_bytes,
                "read_gb_per_second": rate / 1e9,
                **added(spec, length, contexts[0], num_bytes / rate, decode, prefill),
            }


def added(
    spec: ModelSpec,
    length: int,
    empty: int,
    read_seconds: float,
    decode: dict[int, list[float]],
    prefill: dict[int, list[float]],
) -> dict[str, float]:
    """What a context adds to a step, as rates; by the shortest samples, since noise only adds."""
    if length == empty:
        return {}
    products = 2 * spec.num_blocks * spec.num_heads * spec.head_dim * (length - empty)
    of_token = min(decode[length]) - min(decode[empty])
    of_chunk = min(prefill[length]) - min(prefill[empty])
    return {
        "added_ms": 1e3 * of_token,
        "decode_gmac_per_second": products / of_token / 1e9,
        "share_of_read_rate": read_seconds / of_token,
        "prefill_gmac_per_second": CHUNK * products / of_chunk / 1e9,
    }


def table(lines: list[dict[str, Any]], caption: str) -> dict[str, Any]:
    """A row for every shape, cache, number of threads and context."""
    columns = ["attention of", "cache", "threads", "context", "added to a token", "decode",
               "of the read rate", "prefill"]  # fmt: skip
    rows = [
        [
            line["shape"], line["cache"], str(line["threads"]), str(line["context"]),
            f"{line['added_ms']:.2f} ms", f"{line['decode_gmac_per_second']:.1f} GMAC/s",
            f"{line['share_of_read_rate']:.0%}", f"{line['prefill_gmac_per_second']:.1f} GMAC/s",
        ]
        for line in lines
        if "added_ms" in line
    ]  # fmt: skip
    return {"columns": columns, "align": "llrrrrrr", "rows": rows, "caption": caption}


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--shapes", nargs="*", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--quick", action="store_true", help="contexts to 4096, no fp32 cache")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    contexts = QUICK_CONTEXTS if options.quick else CONTEXTS
    types = [name for name in CACHE_BITS if not options.quick or name != "float32"]
    lines = []
    for shape in options.shapes:
        for threads in options.threads:
            for cache_type in types:
                for line in measured(shape, cache_type, threads, contexts, options.runs):
                    lines.append(line)
                    rates = (f", {line['decode_gmac_per_second']:.1f} GMAC/s"
                             if "added_ms" in line else "")  # fmt: skip
                    print(f"{shape}, {cache_type:8} {threads} threads, context "
                          f"{line['context']:5}: {line['token']}{rates}", flush=True)  # fmt: skip
    reads = [line["read_gb_per_second"] for line in lines]
    caption = (
        f"Two blocks of each shape; what a token takes more than behind an empty context; kernels "
        f"{kernels.best()}; read rate {min(reads):.1f} to {max(reads):.1f} GB/s; {machine_text()}, "
        f"load {os.getloadavg()[0]:.1f}."
    )
    result = {
        "machine": machine_text(), "load_average": round(os.getloadavg()[0], 2),
        "kernels": kernels.best(), "table": table(lines, caption), "lines": lines,
    }  # fmt: skip
    options.output.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n")


if __name__ == "__main__":
    main()
