"""Steps of small random models, timed, and the terms of their time fitted: half of a probe."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from pliant.costs import Graph, Step, Widths, step_graph
from pliant.costs.calibration import TERMS, Calibration, Terms, step_seconds, step_terms
from pliant.costs.least_squares import median_error, relative_fit
from pliant.runtime import Chunk
from pliant.runtime.engine import CacheType, Engine
from pliant.runtime.random_weights import RandomWeights
from pliant.spec import ModelSpec
from pliant.subnet import Subnet

#: Cache bytes of a value -> the engine's name of it.
CACHE_TYPES: dict[int, CacheType] = {1: "int8", 2: "float16", 4: "float32"}
#: Seconds that a sample takes at least, by repeating short steps.
_LEAST_SECONDS = 0.01
#: Every so many-th step is held out of the fit and tells its error.
_HELD_OUT = 5
#: What terms cost on processors of today, and how much the fit is pulled there, where 1 is as much
#: as all samples: it decides only between terms that the samples cannot tell apart.
_USUAL = Terms(
    product=1.0, load=2e-10, row=5e-11, entry=1e-9, value=5e-10, gate=2e-9, phase=5e-7, step=2e-5
)
_PULL = 0.03


@dataclass(frozen=True)
class Sample:
    """A step that was timed: what it is made of, and its seconds."""

    graph: Graph
    step: Step
    seconds: float


def _spec(
    hidden: int, blocks: int, heads: int, groups: int, head_dim: int, ffn: int, vocab: int = 512
) -> ModelSpec:
    return ModelSpec(
        architecture="llama", vocab_size=vocab, hidden_size=hidden, num_blocks=blocks,
        num_heads=heads, num_groups=groups, head_dim=head_dim, ffn_size=ffn, max_context=4096,
        attention_scale=head_dim**-0.5, tied_embeddings=True,
    )  # fmt: skip


class Model(msgspec.Struct, frozen=True):
    """A random model of a probe: its spec, the planes read, and steps as (cached, new tokens)."""

    spec: ModelSpec
    planes: int
    steps: tuple[tuple[int, int], ...]


#: Models that tell the terms apart: three of the sizes of real ones, whose blocks are products
#: above all, then attention behind long contexts, and little work in many blocks.
MODELS: tuple[Model, ...] = (
    Model(
        _spec(896, 5, 14, 2, 64, 4864, 8192), 4, ((1, 1), (64, 1), (384, 1), (0, 64), (256, 128))
    ),
    Model(_spec(1536, 2, 12, 2, 128, 6144, 4096), 2, ((16, 1), (300, 1), (0, 128), (128, 32))),
    Model(_spec(2048, 1, 32, 8, 64, 5632, 16384), 5, ((64, 1), (2, 1), (256, 1), (0, 100))),
    Model(
        _spec(256, 6, 8, 2, 64, 512), 4,
        ((1, 1), (256, 1), (1024, 1), (2048, 1), (0, 128), (1024, 128), (0, 64)),
    ),
    Model(
        _spec(512, 4, 4, 4, 128, 512), 3,
        ((32, 1), (512, 1), (1536, 1), (0, 128), (512, 128), (1536, 64)),
    ),
    Model(
        _spec(512, 4, 8, 8, 64, 1024), 4,
        ((8, 1), (256, 1), (1024, 1), (2000, 1), (0, 128), (384, 128)),
    ),
    Model(_spec(128, 8, 4, 2, 32, 256), 4, ((8, 1), (250, 1), (480, 1), (0, 64), (128, 128))),
)  # fmt: skip


def timed_steps(threads: int, value_bytes: int = 2, rounds: int = 5) -> list[Sample]:
    """Decoding and prompt steps of all `MODELS`, each the lower quartile of `rounds` runs."""
    samples: list[Sample] = []
    for model in MODELS:
        subnet = Subnet.full(model.spec, model.planes)
        weights = RandomWeights(model.spec, max(model.planes, subnet.bits.embedding))
        with Engine(weights, subnet, threads, cache_type=CACHE_TYPES[value_bytes]) as engine:
            samples += _samples(engine, model.steps, value_bytes, rounds)
    return samples


def _samples(
    engine: Engine, sizes: Sequence[tuple[int, int]], value_bytes: int, rounds: int
) -> Iterator[Sample]:
    widths = Widths(cache_value_bytes=value_bytes)
    longest = max(cached for cached, _ in sizes)
    cache = engine.new_cache(longest + 512)
    tokens = np.arange(256, dtype=np.int32)
    while cache.length < longest:
        engine.forward_chunk([Chunk(tokens, cache, logits="none")])
    # From the longest on, so that the cache is only ever cut.
    for cached, count in sorted(sizes, reverse=True):
        step = Step(tokens=count, cached=cached)
        cache.truncate(cached)

        def run(step: Step = step) -> None:
            engine.forward_chunk([Chunk(tokens[: step.tokens], cache)])
            cache.truncate(step.cached)

        graph = step_graph(engine.subnet, step, widths)
        yield Sample(graph, step, undisturbed_seconds(run, _LEAST_SECONDS, rounds))


def undisturbed_seconds(run: Callable[[], None], least_seconds: float, rounds: int) -> float:
    """Lower quartile over `rounds` of the mean seconds of as many calls as `least_seconds` take.

    On a quiet machine it is the median; on a busy one the median is about the others.
    """
    run()
    start = time.perf_counter()
    run()
    count = max(1, round(least_seconds / max(time.perf_counter() - start, 1e-7)))
    taken = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(count):
            run()
        taken.append((time.perf_counter() - start) / count)
    return float(np.quantile(taken, 0.25))


def fitted(calibration: Calibration, samples: Sequence[Sample]) -> Calibration:
    """The calibration with its terms fitted to `samples` and its errors on those held out."""
    kept = [item for place, item in enumerate(samples) if place % _HELD_OUT != _HELD_OUT - 1]
    held = [item for place, item in enumerate(samples) if place % _HELD_OUT == _HELD_OUT - 1]
    trial = msgspec.structs.replace(calibration, seconds=_fit(calibration, kept))
    decode = [item for item in held if item.step.tokens == 1]
    prefill = [item for item in held if item.step.tokens > 1]
    return msgspec.structs.replace(
        calibration,
        seconds=_fit(calibration, samples),
        decode_error=_error(trial, decode),
        prefill_error=_error(trial, prefill),
        steps_fitted=len(samples),
    )


def _fit(calibration: Calibration, samples: Sequence[Sample]) -> Terms:
    sizes = np.array(
        [msgspec.structs.astuple(step_terms(item.graph, item.step, calibration))
         for item in samples]
    )  # fmt: skip
    seconds = np.array([item.seconds for item in samples])
    usual = np.array(msgspec.structs.astuple(_USUAL))
    x = relative_fit(sizes, seconds, usual, np.full(len(TERMS), _PULL))
    return Terms(**dict(zip(TERMS, map(float, x), strict=True)))


def _error(calibration: Calibration, samples: Sequence[Sample]) -> float:
    if not samples:
        return 0.0
    foreseen = np.array([step_seconds(item.graph, item.step, [calibration]) for item in samples])
    return median_error(foreseen, np.array([item.seconds for item in samples]))
