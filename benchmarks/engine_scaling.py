"""How does the time of a token change with batch, prompt, cut and context, beside the roofline?

`python benchmarks/engine_scaling.py` writes `benchmarks/results/engine_scaling.json` and
`docs/images/engine_scaling.svg`. Four questions, each on a model of a true shape with random
weights (`random_models.py`), the read bandwidth probed before and after each:

- batch: the time of a step of 1 to 32 sequences, per token;
- tokens: the time of 1 to 128 tokens of one prompt in one step; never above that many steps of one,
  and never falling as tokens grow;
- cuts: decoding as depth, width or planes fall; it must get faster with each;
- context: decoding and prefill behind 1 to 8192 cached tokens.

The roofline of a step is the larger of two times: reading its bytes (weights once, the cache of
each sequence) at the probed rate, and computing its tokens at the best rate that a long prompt
reached in the same run. What is slower than it should be is printed at the end and stored as
`findings`. About 3 minutes; `--quick` takes half a minute, on a small model.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from engine_scaling_picture import draw
from engine_scaling_report import findings, table
from pliant.artifact import Artifact
from pliant.bits import BitPlan
from pliant.costs import decode_traffic
from pliant.measurement import Measurement, format_seconds
from pliant.recipes.bench import BandwidthProbe, machine_text
from pliant.runtime import Chunk
from pliant.runtime.bandwidth import read_rate
from pliant.runtime.engine import Engine
from pliant.shape import SubnetShape
from pliant.subnet import Subnet
from random_models import CACHE, CONFIGS, random_artifact

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "engine_scaling.json"
PICTURE = ROOT / "docs" / "images" / "engine_scaling.svg"
BATCHES = (1, 2, 4, 8, 16, 32)
TOKENS = (*range(1, 17), 24, 32, 48, 64, 96, 128)
CONTEXTS = (1, 256, 512, 1024, 2048, 4096, 8192)
FRACTIONS = (1.0, 0.75, 0.5, 0.25)
#: Cached tokens where a question is not about them.
SHORT_CONTEXT = 16
#: Tokens of a step that shows the best rate of arithmetic.
LONG_STEP = 256


@dataclass(frozen=True)
class Bound:
    """Rates of this machine in one run: bytes read and tokens computed per second."""

    bytes_per_second: float
    tokens_per_second: float

    def seconds(self, num_bytes: float, tokens: int) -> float:
        """The roofline of a step that reads `num_bytes` and computes `tokens` of the full model."""
        return max(num_bytes / self.bytes_per_second, tokens / self.tokens_per_second)


Step = Callable[[], object]


def in_turn(steps: Sequence[Step], rounds: int, least_seconds: float) -> list[list[float]]:
    """Seconds of each step in each round, all in turn; short ones are repeated within a round.

    A sample is the mean of as many calls as `least_seconds` take. The first call warms up.
    """
    counts = []
    for step in steps:
        step()
        start = time.perf_counter()
        step()
        counts.append(max(1, round(least_seconds / max(time.perf_counter() - start, 1e-6))))
    samples: list[list[float]] = [[] for _ in steps]
    for number in range(rounds):
        order = range(len(steps)) if number % 2 == 0 else reversed(range(len(steps)))
        for place in order:
            start = time.perf_counter()
            for _ in range(counts[place]):
                steps[place]()
            samples[place].append((time.perf_counter() - start) / counts[place])
    return samples


class Scaling:
    """One model, its options, and the answers so far."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.artifact: Artifact = random_artifact(
            options.model, CONFIGS[options.model], cache=options.cache
        )
        self.spec = self.artifact.spec
        self.subnet = self.artifact.subnet(f"b{options.planes}")
        self.probes: dict[str, BandwidthProbe] = {}
        draw_tokens = np.random.default_rng(0)
        longest = max(*CONTEXTS, max(TOKENS), LONG_STEP)
        self.tokens: NDArray[np.int32] = draw_tokens.integers(
            0, self.spec.vocab_size, longest, np.int32
        )

    def ask(self, name: str, question: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
        """Lines of one question, with the probe around it; seconds become rooflines by it."""
        begin = time.perf_counter()
        before = read_rate(self.options.threads)
        lines = question()
        probe = BandwidthProbe(
            threads=self.options.threads, before=before, after=read_rate(self.options.threads)
        )
        self.probes[name] = probe
        bound = Bound(probe.rate * 1e9, self.tokens_per_second)
        for line in lines:
            line["bound_seconds"] = bound.seconds(line["bytes"], line.get("tokens", 0))
            line["of_bound"] = line["bound_seconds"] / line["seconds"]["median"]
        say(f"{name}: {format_seconds(time.perf_counter() - begin)}, read rate "
            f"{before.median:.1f} and {probe.after.median:.1f} GB/s")  # fmt: skip
        return lines

    def line(
        self, samples: list[float], num_bytes: int, tokens: int = 0, **labels: object
    ) -> dict[str, Any]:
        """A stored line: seconds of a step, the bytes it reads, the tokens it computes."""
        seconds = msgspec.to_builtins(Measurement.of(samples, "s"))
        return {**labels, "seconds": seconds, "bytes": num_bytes, "tokens": tokens}

    def measure_arithmetic(self) -> None:
        """The token rate of a long prompt, the bound of arithmetic."""
        with Engine(self.artifact, self.subnet, threads=self.options.threads) as engine:
            cache = engine.new_cache(LONG_STEP)
            step = prompt_step(engine, cache, 0, self.tokens[:LONG_STEP])
            seconds = min(in_turn([step], self.options.rounds, 0.0)[0])
        self.tokens_per_second = LONG_STEP / seconds

    def batch(self) -> list[dict[str, Any]]:
        """A step of one token of each of some sequences."""
        with Engine(self.artifact, self.subnet, threads=self.options.threads) as engine:
            steps = [batch_step(engine, count, self.tokens) for count in BATCHES]
            samples = in_turn(steps, self.options.rounds, self.options.least_seconds)
        traffic = decode_traffic(self.subnet, SHORT_CONTEXT)
        return [
            self.line(taken, traffic.weight_bytes + count * traffic.cache_bytes, count,
                      sequences=count)
            for count, taken in zip(BATCHES, samples, strict=True)
        ]  # fmt: skip

    def tokens_at_once(self) -> list[dict[str, Any]]:
        """A step of some tokens of one sequence, with the logits of the last."""
        with Engine(self.artifact, self.subnet, threads=self.options.threads) as engine:
            cache = engine.new_cache(max(TOKENS))
            steps = [prompt_step(engine, cache, 0, self.tokens[:count]) for count in TOKENS]
            samples = in_turn(steps, self.options.rounds, self.options.least_seconds)
        num_bytes = decode_traffic(self.subnet, 0).weight_bytes
        return [
            self.line(taken, num_bytes, count, count=count)
            for count, taken in zip(TOKENS, samples, strict=True)
        ]

    def cuts(self) -> list[dict[str, Any]]:
        """Decoding of cuts along each axis alone."""
        cuts = list(self._cuts())
        with ExitStack() as stack:
            steps = []
            for _, _, subnet in cuts:
                engine = Engine(self.artifact, subnet, threads=self.options.threads)
                steps.append(batch_step(stack.enter_context(engine), 1, self.tokens))
            samples = in_turn(steps, self.options.rounds, self.options.least_seconds)
        return [
            self.line(taken, decode_traffic(subnet, SHORT_CONTEXT).total_bytes, axis=axis,
                      kept=kept)
            for (axis, kept, subnet), taken in zip(cuts, samples, strict=True)
        ]  # fmt: skip

    def _cuts(self) -> list[tuple[str, float, Subnet]]:
        spec, planes = self.spec, self.options.planes

        def cut(depth: int, width: float, planes: int) -> Subnet:
            shape = SubnetShape.uniform(spec, tuple(range(depth)), width, 64)
            return Subnet(spec, shape, BitPlan.uniform(depth, planes))

        full = spec.num_blocks
        depths = [("depth", part, cut(max(1, round(part * full)), 1.0, planes))
                  for part in FRACTIONS]  # fmt: skip
        widths = [("width", part, cut(full, part, planes)) for part in FRACTIONS]
        bits = [("planes", float(count), cut(full, 1.0, count)) for count in range(8, 0, -1)]
        return [*depths, *widths, *bits]

    def context(self) -> list[dict[str, Any]]:
        """One sequence filled step by step; decoding and prefill timed at some lengths."""
        contexts = [length for length in CONTEXTS if length <= self.options.most_context]
        room = min(self.spec.max_context, max(contexts) + LONG_STEP)
        lines = []
        with Engine(self.artifact, self.subnet, threads=self.options.threads) as engine:
            cache = engine.new_cache(room)
            for length in contexts:
                fill(engine, cache, length, self.tokens)
                decode = prompt_step(engine, cache, length, self.tokens[:1])
                chunk = self.tokens[: min(128, room - length)]
                prefill = prompt_step(engine, cache, length, chunk)
                least = self.options.least_seconds
                samples = in_turn([decode], self.options.rounds, least)[0]
                many = in_turn([prefill], 2, 0.0)[0]
                traffic = decode_traffic(self.subnet, length)
                line = self.line(samples, traffic.total_bytes, context=length)
                line["prefill_tokens_per_second"] = len(chunk) / min(many)
                line["cache_bytes"] = traffic.cache_bytes
                lines.append(line)
                cache.truncate(length)
                say(f"  context {length}: {format_seconds(line['seconds']['median'])} a token")
        return lines


def prompt_step(engine: Engine, cache: Any, length: int, tokens: NDArray[np.int32]) -> Step:
    """A step of `tokens` behind the first `length` cached ones."""

    def step() -> None:
        cache.truncate(length)
        engine.forward_chunk([Chunk(tokens, cache)])

    return step


def batch_step(engine: Engine, count: int, tokens: NDArray[np.int32]) -> Step:
    """A step of one token of each of `count` sequences, behind a short context."""
    caches = [engine.new_cache(SHORT_CONTEXT + 1) for _ in range(count)]
    engine.forward_chunk([Chunk(tokens[:SHORT_CONTEXT], cache, logits="none") for cache in caches])

    def step() -> None:
        for cache in caches:
            cache.truncate(SHORT_CONTEXT)
        engine.forward_chunk([Chunk(tokens[:1], cache) for cache in caches])

    return step


def fill(engine: Engine, cache: Any, length: int, tokens: NDArray[np.int32]) -> None:
    """Append tokens up to `length`."""
    while cache.length < length:
        part = tokens[cache.length : min(length, cache.length + LONG_STEP)]
        engine.forward_chunk([Chunk(part, cache, logits="none")])


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    options = parsed()
    say(f"{options.model}: about {'half a minute' if options.quick else '3 minutes'} on a quiet "
        f"machine, the random model in {options.cache}")  # fmt: skip
    scaling = Scaling(options)
    scaling.measure_arithmetic()
    questions = {"batch": scaling.batch, "tokens": scaling.tokens_at_once, "cuts": scaling.cuts,
                 "context": scaling.context}  # fmt: skip
    answers = {name: scaling.ask(name, question) for name, question in questions.items()}
    found = findings(answers)
    probes = [probe.rate for probe in scaling.probes.values()]
    if max(probe.drift for probe in scaling.probes.values()) > 0.1:
        found.append("the read rate moved by more than a tenth: the machine is not quiet")
    caption = (
        f"{options.model} with {options.planes} planes unless said, {options.threads} threads, "
        f"kernels {scaling_kernels()}; median of {options.rounds} that took turns; read rate "
        f"{min(probes):.1f} to {max(probes):.1f} GB/s; {machine_text()}."
    )
    results = {
        "model": options.model, "planes": options.planes, "threads": options.threads,
        "machine": machine_text(), "load_average": round(os.getloadavg()[0], 2),
        "prefill_tokens_per_second": scaling.tokens_per_second,
        "probes": msgspec.to_builtins(scaling.probes), "findings": found,
        "table": table(answers, caption), "answers": answers,
    }  # fmt: skip
    options.output.parent.mkdir(parents=True, exist_ok=True)
    content = msgspec.json.format(msgspec.json.encode(results), indent=2)
    options.output.write_bytes(content + b"\n")
    draw(results, options.picture)
    for finding in found:
        say(f"finding: {finding}")
    return 0


def scaling_kernels() -> str:
    """The kernel path that computed."""
    from pliant import _native

    return str(_native.kernels.best())


def parsed() -> argparse.Namespace:
    """The options, with what --quick changes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="Qwen2.5-0.5B", choices=list(CONFIGS)[1:])
    parser.add_argument("--planes", type=int, default=4, choices=range(1, 9))
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--least-seconds", type=float, default=0.1, help="of a sample")
    parser.add_argument("--most-context", type=int, default=max(CONTEXTS))
    parser.add_argument("--quick", action="store_true", help="the 15M model, contexts to 2048")
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder of random models")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--picture", type=Path, default=PICTURE)
    options = parser.parse_args()
    if options.quick:
        options.model, options.rounds, options.least_seconds = "15M", 3, 0.03
        options.most_context = min(options.most_context, 2048)
    return options


if __name__ == "__main__":
    sys.exit(main())
