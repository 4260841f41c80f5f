"""Steps of small random models, timed, and the terms of their time fitted: half of a probe."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import msgspec
import numpy as np

from pliant.bits.cache import CACHE_BITS, CacheType
from pliant.costs import Graph, Step, Widths, step_graph
from pliant.costs.calibration import (
    CACHE_TERMS,
    TERMS,
    CacheTerms,
    Calibration,
    Terms,
    step_seconds,
    step_terms,
)
from pliant.costs.least_squares import median_error, relative_fit
from pliant.runtime import Chunk
from pliant.runtime.engine import Engine, KVCache
from pliant.runtime.random_weights import RandomWeights
from pliant.spec import ModelSpec
from pliant.subnet import Subnet

#: Bits of a cached value -> the engine's name of such a cache.
CACHE_TYPES: dict[int, CacheType] = {bits: name for name, bits in CACHE_BITS.items()}
#: Caches that a probe times besides float16, with `CACHE_MODELS`.
PROBED_CACHES: tuple[int, ...] = (8, 4, 3, 2)
#: Seconds that a sample takes at least, by repeating short steps.
_LEAST_SECONDS = 0.008
#: Every so many-th step is held out of the fit and tells its error.
_HELD_OUT = 5
#: What terms cost on processors of today, and how much the fit is pulled there, where 1 is as much
#: as all samples: it decides only between terms that the samples cannot tell apart.
_USUAL = Terms(
    product=1.0,
    load=2e-10,
    row=5e-11,
    entry=1e-9,
    value=5e-10,
    gate=2e-9,
    call=1e-8,
    tile=1e-8,
    phase=5e-7,
    step=1e-5,
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
    Model(_spec(64, 2, 4, 2, 16, 128, 256), 6, ((2, 1), (100, 1), (300, 1), (0, 128), (0, 16))),
    Model(_spec(192, 4, 6, 3, 32, 512, 2048), 2, ((4, 1), (700, 1), (0, 64), (256, 128))),
)  # fmt: skip


#: The models whose time is attention above all: they tell caches of other bits apart.
CACHE_MODELS: tuple[Model, ...] = MODELS[3:6]


@dataclass(frozen=True)
class _Trial:
    """A step ready to be run again and again, behind a cache of its own."""

    engine: Engine
    step: Step
    graph: Graph
    cache: KVCache

    def run(self) -> None:
        """Run the step once and forget its tokens."""
        tokens = np.arange(self.step.tokens, dtype=np.int32)
        self.engine.forward_chunk([Chunk(tokens, self.cache)])
        self.cache.truncate(self.step.cached)


def timed_steps(
    threads: int, cache_bits: int = 16, rounds: int = 5, models: Sequence[Model] | None = None
) -> list[Sample]:
    """Decoding and prompt steps of `models` (`MODELS`), each the lower quartile of `rounds` runs.

    All steps take turns, so that a slow moment of the machine falls on one round of each.
    """
    with ExitStack() as stack:
        trials = [
            trial
            for model in (MODELS if models is None else models)
            for trial in _trials(stack, model, threads, cache_bits)
        ]
        taken = [
            [seconds_per_run(trial.run, _LEAST_SECONDS, threads) for trial in trials]
            for _ in range(rounds)
        ]
        seconds = np.quantile(np.array(taken), 0.25, axis=0)
        return [
            Sample(trial.graph, trial.step, float(second))
            for trial, second in zip(trials, seconds, strict=True)
        ]


def _trials(stack: ExitStack, model: Model, threads: int, cache_bits: int) -> Iterator[_Trial]:
    subnet = Subnet.full(model.spec, model.planes)
    weights = RandomWeights(model.spec, max(model.planes, subnet.bits.embedding))
    engine = stack.enter_context(
        Engine(weights, subnet, threads, cache_type=CACHE_TYPES[cache_bits])
    )
    longest = max(cached for cached, _ in model.steps)
    grown = engine.new_cache(longest + 256)
    while grown.length < longest:
        tokens = np.arange(min(128, longest - grown.length), dtype=np.int32)
        engine.forward_chunk([Chunk(tokens, grown, logits="none")])
    for cached, count in model.steps:
        cache = grown.clone()
        cache.truncate(cached)
        step = Step(tokens=count, cached=cached)
        graph = step_graph(subnet, step, Widths.of_cache(cache_bits))
        yield _Trial(engine, step, graph, cache)


def clock_for(threads: int) -> Callable[[], float]:
    """The clock that times an engine: of this thread's CPU where it computes alone.

    On a quiet machine that is the time that passes; on a busy one it leaves out the others.
    """
    return time.thread_time if threads == 1 else time.perf_counter


def seconds_per_run(run: Callable[[], None], least_seconds: float, threads: int) -> float:
    """Mean seconds of as many runs as `least_seconds` take, after one that is not counted."""
    clock = clock_for(threads)
    run()
    start = clock()
    run()
    first = clock() - start
    count = round(least_seconds / max(first, 1e-7))
    if count < 2:
        return first
    start = clock()
    for _ in range(count):
        run()
    return (clock() - start) / count


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


def with_cache(calibration: Calibration, bits: int, samples: Sequence[Sample]) -> Calibration:
    """The calibration with the terms of a cache of `bits` bits, fitted to `samples` with it.

    Only what attention does is fitted anew; the rest is as with float16.
    """
    fitted_all = _cache_seconds(calibration, samples)
    errors = []
    for place, item in enumerate(samples):
        others = [*samples[:place], *samples[place + 1 :]]
        terms = step_terms(item.graph, item.step, calibration)
        foreseen = terms.dot(_cache_seconds(calibration, others))
        errors.append(abs(foreseen / item.seconds - 1.0))
    found = CacheTerms(bits=bits, seconds=fitted_all, error=float(np.median(errors)))
    return msgspec.structs.replace(calibration, caches=(*calibration.caches, found))


def _cache_seconds(calibration: Calibration, samples: Sequence[Sample]) -> Terms:
    base = calibration.seconds
    every = [step_terms(item.graph, item.step, calibration) for item in samples]
    sizes_NT = np.array([[getattr(terms, name) for name in CACHE_TERMS] for terms in every])
    seconds_N = np.array([item.seconds for item in samples])
    known_N = np.array([terms.dot(base) for terms in every])
    prior_T = np.array([getattr(base, name) for name in CACHE_TERMS])
    # What is not attention is known; a disturbed machine leaves attention a tenth.
    rest_N = np.maximum(seconds_N - (known_N - sizes_NT @ prior_T), 0.1 * seconds_N)
    pull_T = np.full(len(CACHE_TERMS), _PULL)
    # Errors are relative to the whole step, of which attention is a part.
    x_T = relative_fit(sizes_NT, rest_N, prior_T, pull_T, rest_N / seconds_N)
    return msgspec.structs.replace(base, **dict(zip(CACHE_TERMS, map(float, x_T), strict=True)))


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
