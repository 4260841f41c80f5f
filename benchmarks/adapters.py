"""What do SMoL adapters cost a token? Decoding and prefill with updates of several ranks.

`python benchmarks/adapters.py` writes `benchmarks/results/adapters.json`. Engines of one random
model of a true shape (`random_models.py`), without adapters and with updates of each rank, take
turns; figures are ratios to the one without. Factors are random, five experts of which a shape
mixes two; how long opening takes is measured too, for that is when they are mixed and rounded.
Factors are int8; stored as fp16 they would have the bytes of twice the rank, which its row shows
but for the arithmetic. About a minute for Qwen2.5-0.5B; `--model 15M` takes seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from engine_scaling import Step, batch_step, in_turn, prompt_step
from pliant.adapters import AdapterSpec, Factors, low_rank_bytes, merged
from pliant.artifact import Artifact
from pliant.costs import decode_traffic
from pliant.measurement import Measurement
from pliant.recipes.bench import machine_text
from pliant.runtime.engine import Engine
from pliant.shape import SubnetShape
from pliant.subnet import Subnet
from random_models import CACHE, CONFIGS, random_artifact

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "adapters.json"
RANKS = (8, 16, 32, 64)
PROMPT_TOKENS = 128
#: Cached tokens behind which one is decoded.
CONTEXT = 16


class Adapted:
    """A random artifact with random adapters, as an engine reads one from a file."""

    def __init__(self, artifact: Artifact, rank: int) -> None:
        self.spec = artifact.spec
        self.planes, self.scales, self.vector = artifact.planes, artifact.scales, artifact.vector
        self.adapters = AdapterSpec(rank, scale=16 / rank)
        self._draw = np.random.default_rng(rank)
        self._made: dict[tuple[int, ...], np.ndarray] = {}

    def low_rank(self, shape: SubnetShape) -> Callable[[str, int, int], Factors]:
        """Blocks share their factors: speed does not depend on their values."""
        del shape

        def update(name: str, rows: int, columns: int) -> Factors:
            full_rows, full_columns = self.spec.tensors()[name]
            rank, experts = self.adapters.rank, self.adapters.experts
            a_ERI = self._factor((experts, rank, full_columns), full_columns**-0.5)
            b_EOR = self._factor((experts, full_rows, rank), 1e-3)
            chosen = {1: 0.625, 3: 0.375}
            return merged(self.adapters, chosen, a_ERI[:, :, :columns], b_EOR[:, :rows])

        return update

    def _factor(self, shape: tuple[int, ...], deviation: float) -> np.ndarray:
        if shape not in self._made:
            values = self._draw.normal(0, deviation, shape)
            self._made[shape] = values.astype(np.float16)
        return self._made[shape]


def measured(artifact: Artifact, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One line for each rank and number of planes, those without adapters first."""
    tokens = np.random.default_rng(0).integers(0, artifact.spec.vocab_size, 256, np.int32)
    lines = []
    for planes in options.planes:
        subnet = artifact.subnet(f"b{planes}")
        with ExitStack() as stack:
            engines, opening = [], []
            for rank in (0, *options.ranks):
                source = Adapted(artifact, rank) if rank else artifact
                # Once for the drawing of factors and for pages that nobody has read yet.
                Engine(source, subnet, threads=options.threads).close()
                begin = time.perf_counter()
                engine = Engine(source, subnet, threads=options.threads)
                opening.append(time.perf_counter() - begin)
                engines.append(stack.enter_context(engine))
            decode = [batch_step(engine, 1, tokens) for engine in engines]
            prefill = [prompt(engine, tokens) for engine in engines]
            least = options.least_seconds
            samples = [in_turn(steps, options.rounds, least) for steps in (decode, prefill)]
        for place, rank in enumerate((0, *options.ranks)):
            lines.append({
                "planes": planes, "rank": rank, "opening_seconds": opening[place],
                **costs(subnet, rank),
                **{name: ratios(taken[place], taken[0])
                   for name, taken in zip(("decode", "prefill"), samples, strict=True)},
            })  # fmt: skip
    return lines


def prompt(engine: Engine, tokens: np.ndarray) -> Step:
    """A step of a long prompt."""
    return prompt_step(engine, engine.new_cache(PROMPT_TOKENS), 0, tokens[:PROMPT_TOKENS])


def costs(subnet: Subnet, rank: int) -> dict[str, int]:
    """Bytes that a decoded token reads in all, and of factors."""
    return {
        "bytes": decode_traffic(subnet, CONTEXT, rank=rank).total_bytes,
        "adapter_bytes": low_rank_bytes(subnet.spec, subnet.shape, rank) if rank else 0,
    }


def ratios(samples: list[float], plain: list[float]) -> dict[str, Any]:
    """Seconds of a step, and its time over that of the plain engine in the same round."""
    each = [own / base for own, base in zip(samples, plain, strict=True)]
    low, median, high = np.quantile(each, (0.25, 0.5, 0.75)).tolist()
    return {
        "seconds": msgspec.to_builtins(Measurement.of(samples, "s")),
        "ratio": {"low": low, "median": median, "high": high},
    }


def table(lines: list[dict[str, Any]], caption: str) -> dict[str, Any]:
    """Columns and rows for `benchmarks/tables.py`."""
    rows = []
    for line in lines:
        decode, prefill = line["decode"], line["prefill"]
        extra = line["adapter_bytes"] / (line["bytes"] - line["adapter_bytes"])
        rows.append(
            [
                str(line["planes"]),
                str(line["rank"] or "none"),
                f"{extra:+.1%}" if line["rank"] else "",
                f"{1 / decode['seconds']['median']:.1f}",
                spread(decode["ratio"]) if line["rank"] else "",
                f"{PROMPT_TOKENS / prefill['seconds']['median']:.0f}",
                spread(prefill["ratio"]) if line["rank"] else "",
                f"{1000 * line['opening_seconds']:.0f} ms",
            ]
        )
    columns = ["planes", "rank", "bytes of a token", "decode token/s", "time", "prefill token/s",
               "time", "opening"]  # fmt: skip
    return {"columns": columns, "align": "rrrrrrrr", "rows": rows, "caption": caption}


def spread(ratio: dict[str, Any]) -> str:
    """`+2.1 % [1.5, 2.9]`."""
    low, middle, high = (100 * (ratio[name] - 1) for name in ("low", "median", "high"))
    return f"{middle:+.1f} % [{low:+.1f}, {high:+.1f}]"


def main() -> int:
    options = parsed()
    artifact = random_artifact(options.model, CONFIGS[options.model], cache=options.cache)
    lines = measured(artifact, options)
    caption = (
        f"{options.model} with random weights, {options.threads} threads; time over that of the "
        f"same engine without adapters, median and quartiles of {options.rounds} rounds that took "
        f"turns; prompts of {PROMPT_TOKENS} tokens; {machine_text()}."
    )
    results = {
        "model": options.model, "threads": options.threads, "machine": machine_text(),
        "load_average": round(os.getloadavg()[0], 2), "table": table(lines, caption),
        "lines": lines,
    }  # fmt: skip
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    for row in results["table"]["rows"]:
        print("  ".join(row), file=sys.stderr)
    return 0


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="Qwen2.5-0.5B", choices=list(CONFIGS)[1:])
    parser.add_argument("--planes", type=int, nargs="+", default=[4, 8], choices=range(1, 9))
    parser.add_argument("--ranks", type=int, nargs="+", default=list(RANKS))
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--least-seconds", type=float, default=0.05, help="of a sample")
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder of random models")
    parser.add_argument("--output", type=Path, default=RESULTS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
