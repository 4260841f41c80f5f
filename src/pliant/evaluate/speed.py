"""`measure_speed`: token/s of prefill and decoding with their spread, and bytes per second."""

from __future__ import annotations

import time

import msgspec
import numpy as np
from numpy.typing import NDArray

from pliant.costs import decode_traffic
from pliant.errors import UsageError
from pliant.measurement import Measurement, Progress, silent
from pliant.runtime import Chunk, TokenModel
from pliant.runtime.generation import PREFILL_TOKENS
from pliant.subnet import Subnet


class Speed(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How fast one sequence goes through one subnet.

    `prefill` and `decode` are in token/s, `first_token` in seconds from an empty cache to the
    first chosen token. `bytes_per_token` are the bytes of weights and cache that a decoded token
    reads, and `bandwidth` (GB/s, 10^9 bytes) what that makes of `decode`.
    """

    prefill: Measurement
    decode: Measurement
    first_token: Measurement
    bandwidth: Measurement
    bytes_per_token: int
    prompt_tokens: int
    decode_tokens: int


def measure_speed(
    model: TokenModel,
    subnet: Subnet,
    *,
    prompt_tokens: int = 128,
    decode_tokens: int = 64,
    runs: int = 5,
    conditions: str = "",
    progress: Progress = silent,
) -> Speed:
    """Run a prompt and greedy decoding `runs` times after one run that warms caches and pages.

    The prompt is `prompt_tokens` seeded ids; sampling is an argmax. `conditions` says what the
    numbers hold for, such as `2 threads, avx2`. Raises `UsageError` for counts below 1 or beyond
    the model's context.
    """
    _check_counts(model, prompt_tokens, decode_tokens, runs)
    prompt = np.random.default_rng(0).integers(0, model.vocab_size, prompt_tokens, np.int32)
    samples = []
    for run in range(runs + 1):
        samples.append(_one_run(model, prompt, decode_tokens))
        progress("measuring speed", run + 1, runs + 1)
    first, decode = np.array(samples[1:]).T
    # The middle of the decoded stretch stands for the growing cache.
    traffic = decode_traffic(subnet, prompt_tokens + decode_tokens // 2).total_bytes
    rates = decode_tokens / decode

    def of(values: NDArray[np.float64], unit: str, name: str) -> Measurement:
        return Measurement.of(values.tolist(), unit, name, conditions)

    return Speed(
        prefill=of(prompt_tokens / first, "token/s", "prefill"),
        decode=of(rates, "token/s", "decode"),
        first_token=of(first, "s", "first token"),
        bandwidth=of(rates * traffic / 1e9, "GB/s", "bandwidth"),
        bytes_per_token=traffic,
        prompt_tokens=prompt_tokens,
        decode_tokens=decode_tokens,
    )


def _check_counts(model: TokenModel, prompt_tokens: int, decode_tokens: int, runs: int) -> None:
    if min(prompt_tokens, decode_tokens, runs) < 1:
        raise UsageError(
            f"{runs} runs of {prompt_tokens} + {decode_tokens} tokens were asked for; each must "
            "be at least 1."
        )
    if prompt_tokens + decode_tokens > model.max_context:
        raise UsageError(
            f"{prompt_tokens} + {decode_tokens} tokens were asked for; the model's context is "
            f"{model.max_context}."
        )


def _one_run(
    model: TokenModel, prompt: NDArray[np.int32], decode_tokens: int
) -> tuple[float, float]:
    """Seconds to the first token, and seconds of the `decode_tokens` forward calls behind it."""
    start = time.perf_counter()
    cache = model.new_cache(len(prompt) + decode_tokens)
    for begin in range(0, len(prompt), PREFILL_TOKENS):
        part = prompt[begin : begin + PREFILL_TOKENS]
        wanted = "last" if begin + PREFILL_TOKENS >= len(prompt) else "none"
        logits = model.forward_chunk([Chunk(part, cache, logits=wanted)])[0]  # type: ignore[arg-type]
    token = int(logits[-1].argmax())
    first = time.perf_counter()
    for _ in range(decode_tokens):
        logits = model.forward_chunk([Chunk(np.array([token], np.int32), cache)])[0]
        token = int(logits[-1].argmax())
    return first - start, time.perf_counter() - first
