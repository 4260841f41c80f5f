"""What does it take to go on as another subnet in the middle of a text?

`python benchmarks/switching.py` writes `benchmarks/results/switching.json`: milliseconds of
`Engine.switch` with a text of so many cached tokens, for switches whose entries are the same, kept
or rebuilt, and beside them what a fresh engine takes that reads the text again. Models have true
shapes and random weights; all weights are in memory before anything is timed. The default takes
about a minute and half a gigabyte in the cache folder.
"""

from __future__ import annotations

import argparse
import gc
import platform
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from pliant.artifact import Artifact
from pliant.bits import BitPlan
from pliant.measurement import Measurement, format_bytes
from pliant.runtime.chunk import Chunk
from pliant.runtime.engine import Engine
from pliant.runtime.switching import Entries
from pliant.shape import SubnetShape
from pliant.subnet import Subnet
from random_models import CONFIGS, random_artifact

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "switching.json"
MODELS = ("tale-750k", "15M", "Qwen2.5-0.5B")

#: What is switched: its name, the subnet before and after, and what may be done with the entries.
Case = tuple[str, Subnet, Subnet, Entries]


def cases(artifact: Artifact) -> list[Case]:
    """Shallower, narrower, coarser, finer, deeper, wider: from and to the full model at 4 bits."""
    spec = artifact.spec
    everything = tuple(range(spec.num_blocks))
    fewer = everything[: spec.num_blocks // 2] + everything[-1:]

    def cut(blocks: tuple[int, ...] = everything, width: float = 1.0, planes: int = 4) -> Subnet:
        shape = SubnetShape.uniform(spec, blocks, width, artifact.manifest.alignment.neurons)
        return Subnet(spec, shape, BitPlan.uniform(len(blocks), planes))

    full = cut()
    return [
        ("head alone finer", full, Subnet(spec, full.shape, _finer_head(full.bits)), "keep"),
        ("coarser, 4 to 2 bits", full, cut(planes=2), "keep"),
        ("finer, 2 to 4 bits", cut(planes=2), full, "keep"),
        ("shallower by half", full, cut(fewer), "keep"),
        ("narrower by half", full, cut(width=0.5), "keep"),
        ("finer, exactly", cut(planes=2), full, "exact"),
        ("deeper", cut(fewer), full, "keep"),
        ("wider", cut(width=0.5), full, "keep"),
    ]


def _finer_head(bits: BitPlan) -> BitPlan:
    return BitPlan(bits.embedding, min(bits.head + 2, 8), bits.blocks)


def filled(engine: Engine, tokens: Any) -> Any:
    """A cache that has read `tokens`."""
    cache = engine.new_cache(tokens.size + 1)
    engine.forward_chunk([Chunk(tokens, cache, logits="none")])
    return cache


def measured_case(
    artifact: Artifact, case: Case, tokens: Any, threads: int, rounds: int
) -> dict[str, Any]:
    """Milliseconds of one switch and of the fresh engine in its place, interleaved."""
    name, before, after, entries = case
    switches, fresh = list[float](), list[float]()
    engine, outcome, cache_bytes = Engine(artifact, before, threads, preload="all"), "", 0
    Engine(artifact, after, threads, preload="all").close()
    for _ in range(rounds):
        cache = filled(engine, tokens)
        made = engine.switch(after, entries=entries)
        switches.append(1e3 * made.seconds)
        outcome, cache_bytes = made.outcome, cache.num_bytes
        del cache
        engine.switch(before)
        start = time.perf_counter()
        with Engine(artifact, after, threads) as other:
            filled(other, tokens)
            fresh.append(1e3 * (time.perf_counter() - start))
    engine.close()
    return {
        "switch": name,
        "entries": outcome,
        "cache_bytes": cache_bytes,
        "milliseconds": Measurement.of(switches, "ms"),
        "fresh_milliseconds": Measurement.of(fresh, "ms"),
    }


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(CONFIGS))
    parser.add_argument("--tokens", type=int, default=128, help="cached tokens of the text")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    lines: list[dict[str, Any]] = []
    for model in options.models:
        artifact = random_artifact(model, CONFIGS[model])
        draw = np.random.default_rng(0)
        tokens = draw.integers(0, artifact.spec.vocab_size, options.tokens, np.int32)
        for case in cases(artifact):
            line = measured_case(artifact, case, tokens, options.threads, options.rounds)
            lines.append({"model": model, **line})
            print(*_row(lines[-1]), sep="  ", flush=True)
            gc.collect()
    results = {
        "machine": f"{platform.system()} {platform.machine()}",
        "threads": options.threads,
        "tokens": options.tokens,
        "table": table(lines, options.tokens, options.threads),
        "measured": msgspec.to_builtins(lines),
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    content = msgspec.json.format(msgspec.json.encode(results), indent=2)
    options.output.write_bytes(content + b"\n")


def _row(line: dict[str, Any]) -> list[str]:
    return [
        f"`{line['model']}`",
        line["switch"],
        line["entries"],
        format_bytes(line["cache_bytes"]),
        _spread(line["milliseconds"]),
        _spread(line["fresh_milliseconds"]),
    ]


def _spread(measured: Measurement) -> str:
    return f"{measured.median:.3g} [{measured.low:.3g}, {measured.high:.3g}]"


def table(lines: list[dict[str, Any]], tokens: int, threads: int) -> dict[str, Any]:
    """Columns and rows for `benchmarks/tables.py`."""
    return {
        "columns": ["model", "switch", "entries", "cache", "ms", "ms, fresh engine"],
        "align": "lllrrr",
        "rows": [_row(line) for line in lines],
        "caption": (
            f"One text of {tokens} cached tokens, threads: {threads}, {platform.system()} "
            f"{platform.machine()}; medians [lowest, highest]. A fresh engine is opened and reads "
            "the text again."
        ),
    }


if __name__ == "__main__":
    main()
