"""`measure_speeds`: token/s of prefill and decoding with their spread, and bytes per second.

The one place where the speed of a model is measured: receipts, `pliant bench` and the scripts in
`benchmarks/` all come here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from pliant.costs import decode_traffic
from pliant.errors import UsageError
from pliant.measurement import Measurement, Progress, silent
from pliant.runtime import Chunk, TokenModel
from pliant.runtime.generation import PREFILL_TOKENS
from pliant.subnet import Subnet


class Workload(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is timed: a prompt of `prompt_tokens`, then `decode_tokens` one by one, `repeats` times.

    Raises `UsageError` for a count below 1.
    """

    prompt_tokens: int = 512
    decode_tokens: int = 128
    repeats: int = 5

    def __post_init__(self) -> None:
        if min(self.prompt_tokens, self.decode_tokens, self.repeats) < 1:
            raise UsageError(
                f"{self.repeats} repeats of {self.prompt_tokens} + {self.decode_tokens} tokens "
                "were asked for; each must be at least 1."
            )

    def require_context(self, max_context: int) -> None:
        """Raise `UsageError` where prompt and generated tokens do not fit into a context."""
        if self.prompt_tokens + self.decode_tokens > max_context:
            raise UsageError(
                f"{self.prompt_tokens} + {self.decode_tokens} tokens were asked for; the model's "
                f"context is {max_context}."
            )

    @property
    def middle_context(self) -> int:
        """Cached tokens in the middle of decoding, which stand for the growing cache."""
        return self.prompt_tokens + self.decode_tokens // 2


class Speed(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How fast one sequence goes through one subnet.

    `prefill` and `decode` are in token/s, `first_token` in seconds from an empty cache to the
    first chosen token. `weight_bytes` and `cache_bytes` are what a decoded token reads of each, and
    `bandwidth` (GB/s, 10^9 bytes) what their sum makes of `decode`. `memory_bytes` is the most the
    model held at the end of a run, 0 where it does not say.
    """

    prefill: Measurement
    decode: Measurement
    first_token: Measurement
    bandwidth: Measurement
    weight_bytes: int
    cache_bytes: int
    memory_bytes: int
    workload: Workload

    @property
    def bytes_per_token(self) -> int:
        """Bytes that a decoded token reads."""
        return self.weight_bytes + self.cache_bytes


@dataclass(frozen=True, eq=False)
class Runner:
    """A model to be timed, the subnet it runs, what its figures hold for, and its memory.

    `memory` returns the bytes the model holds; it is asked while the cache of a run is alive.
    `rank` is that of its adapters (0: none), which it reads too.
    """

    model: TokenModel
    subnet: Subnet
    conditions: str = ""
    memory: Callable[[], int] | None = None
    rank: int = 0


@dataclass(frozen=True)
class RunSample:
    """One run: seconds to the first token, seconds of the tokens after it, bytes held then."""

    first_seconds: float
    decode_seconds: float
    memory_bytes: int = 0


def measure_speeds(
    runners: Sequence[Runner],
    workload: Workload,
    *,
    progress: Progress = silent,
    after_round: Callable[[int], None] | None = None,
) -> list[Speed]:
    """Time the same workload on every runner, in turn, so that a slow moment hits all alike.

    A first round warms caches and pages and is not counted. The order turns round from one round
    to the next, so that drift cancels. The prompt is seeded; tokens are chosen by argmax.
    `after_round(n)` is called behind round n, 0 for the first. Raises `UsageError` where the
    workload exceeds a context.
    """
    for runner in runners:
        workload.require_context(runner.model.max_context)
    samples: list[list[RunSample]] = [[] for _ in runners]
    total, done = len(runners) * (workload.repeats + 1), 0
    for number in range(workload.repeats + 1):
        order = range(len(runners)) if number % 2 == 0 else reversed(range(len(runners)))
        for place in order:
            sample = time_run(runners[place], workload)
            samples[place] += [sample] if number else []
            done += 1
            progress("measuring speed", done, total)
        if after_round is not None:
            after_round(number)
    return [
        speed_of(runner, taken, workload) for runner, taken in zip(runners, samples, strict=True)
    ]


def measure_speed(
    model: TokenModel,
    subnet: Subnet,
    workload: Workload,
    *,
    conditions: str = "",
    rank: int = 0,
    progress: Progress = silent,
) -> Speed:
    """`measure_speeds` of a single model; `conditions` is a text such as `2 threads, avx2`."""
    runner = Runner(model, subnet, conditions, rank=rank)
    return measure_speeds([runner], workload, progress=progress)[0]


def time_run(runner: Runner, workload: Workload) -> RunSample:
    """One run of a workload from an empty cache."""
    model = runner.model
    draw = np.random.default_rng(0)
    prompt = draw.integers(0, model.vocab_size, workload.prompt_tokens, np.int32)
    start = time.perf_counter()
    cache = model.new_cache(len(prompt) + workload.decode_tokens)
    for begin in range(0, len(prompt), PREFILL_TOKENS):
        part = prompt[begin : begin + PREFILL_TOKENS]
        wanted = "last" if begin + PREFILL_TOKENS >= len(prompt) else "none"
        logits = model.forward_chunk([Chunk(part, cache, logits=wanted)])[0]  # type: ignore[arg-type]
    token = int(logits[-1].argmax())
    first = time.perf_counter()
    for _ in range(workload.decode_tokens):
        logits = model.forward_chunk([Chunk(np.array([token], np.int32), cache)])[0]
        token = int(logits[-1].argmax())
    end = time.perf_counter()
    held = runner.memory() if runner.memory is not None else 0
    return RunSample(first - start, end - first, held)


def speed_of(runner: Runner, samples: Sequence[RunSample], workload: Workload) -> Speed:
    """The figures of the runs of one runner."""
    traffic = decode_traffic(runner.subnet, workload.middle_context, rank=runner.rank)
    first = np.array([sample.first_seconds for sample in samples])
    rates = workload.decode_tokens / np.array([sample.decode_seconds for sample in samples])

    def of(values: NDArray[np.float64], unit: str, name: str) -> Measurement:
        return Measurement.of(values.tolist(), unit, name, runner.conditions)

    return Speed(
        prefill=of(workload.prompt_tokens / first, "token/s", "prefill"),
        decode=of(rates, "token/s", "decode"),
        first_token=of(first, "s", "first token"),
        bandwidth=of(rates * traffic.total_bytes / 1e9, "GB/s", "bandwidth"),
        weight_bytes=traffic.weight_bytes,
        cache_bytes=traffic.cache_bytes,
        memory_bytes=max(sample.memory_bytes for sample in samples),
        workload=workload,
    )
