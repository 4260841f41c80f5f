"""`Calibration`: what operators take on one machine, as measured, and the time of a step by it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import msgspec

from pliant.bits import ceil_div
from pliant.costs.graph import Graph
from pliant.costs.operators import Operator
from pliant.costs.step import Step
from pliant.errors import UsageError

#: Tokens whose query rows share the loading of a key (native/engine/weights.h): 32 rows.
_TILE_QUERY_ROWS = 32
#: Tokens that a product takes at once where there are many (native/kernels/blocks_avx2.cpp).
_BLOCK_TOKENS = 6
#: Cached tokens from which on a context is split where groups are too few for all workers.
_SPLIT_CONTEXT = 256
#: Weights of a step from which on the engine always uses all threads, and below which one
#: (native/base/crew.cpp); between them it takes the faster way, as it finds out.
_SMALL_WORK, _LARGE_WORK = 200_000, 4_000_000


#: The cache that `Calibration.seconds` was measured with: float16.
BASE_CACHE_BITS = 16


class ProductPoint(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Seconds per weight of a product of `tokens` tokens with `planes` planes.

    Measured over matrices of `set_bytes` bytes together, visited in turn: that tells from which
    cache they come, or that they come from memory.
    """

    planes: int
    tokens: int
    set_bytes: float
    seconds: float

    def __post_init__(self) -> None:
        sizes = (self.planes, self.tokens, self.set_bytes, self.seconds)
        if not all(0 < size < 1e18 for size in sizes):
            raise ValueError("planes, tokens, bytes and seconds of a product are above 0")


class Terms(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The terms that the time of a step is the sum of: their sizes, or their seconds each.

    - `product`: seconds that the measured kernels take; its coefficient is near 1.
    - `load`, `row`: numbers of keys and values loaded for a tile of queries, and multiplied.
    - `entry`: scores, one for each head and entry it sees.
    - `value`: numbers normed, quantized, rotated, stored or added; `gate`: neurons gated.
    - `call`: rows and heads begun, whatever their length; `tile`: tiles of products begun.
    - `phase`: phases between barriers; `step`: calls of the engine.
    """

    product: float = 0.0
    load: float = 0.0
    row: float = 0.0
    entry: float = 0.0
    value: float = 0.0
    gate: float = 0.0
    call: float = 0.0
    tile: float = 0.0
    phase: float = 0.0
    step: float = 0.0

    def plus(self, other: Terms, times: float = 1.0) -> Terms:
        """The sum with `times` of another, term by term."""
        return Terms(**{name: getattr(self, name) + times * getattr(other, name) for name in TERMS})

    def dot(self, seconds: Terms) -> float:
        """Seconds of terms of these sizes."""
        return sum(float(getattr(self, name) * getattr(seconds, name)) for name in TERMS)


TERMS: tuple[str, ...] = Terms.__struct_fields__


class CacheTerms(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Seconds of all terms with a cache of `bits` bits a value, and its error on decoded tokens.

    Only what attention does differs from the float16 cache that the other terms were fitted with:
    values loaded, met and scored.
    """

    bits: int
    seconds: Terms
    error: float = 0.0


#: Terms that depend on how keys and values are stored.
CACHE_TERMS: tuple[str, ...] = ("load", "row", "entry")


class Calibration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A machine with `threads` threads: its products, seconds of all terms, and its errors.

    `decode_error` and `prefill_error` are median absolute relative errors on steps that the fit
    did not see. `seconds` are those with caches of float16; `caches` has others, by their bits; a
    cache that was not measured counts as float16. `measured_there` is how many measurements
    corrected the calibration (`measured.py`); 0 is none.
    """

    threads: int
    kernels: str
    products: tuple[ProductPoint, ...]
    seconds: Terms
    caches: tuple[CacheTerms, ...] = ()
    decode_error: float = 0.0
    prefill_error: float = 0.0
    steps_fitted: int = 0
    measured_there: int = 0

    def seconds_with(self, cache_bits: int) -> Terms:
        """Seconds of all terms with a cache of so many bits a value."""
        found = (item.seconds for item in self.caches if item.bits == cache_bits)
        return next(found, self.seconds)

    def knows_cache(self, cache_bits: int) -> bool:
        """Whether a cache of so many bits a value was measured."""
        return cache_bits == BASE_CACHE_BITS or cache_bits in {item.bits for item in self.caches}

    def product_seconds(self, planes: int, tokens: int, set_bytes: float) -> float:
        """Seconds per weight, interpolated between the points measured.

        Beyond the most tokens measured each further token costs what one of those did.
        """
        points = [point for point in self.products if point.planes == planes]
        if not points:
            raise UsageError(f"This profile has no product of {planes} planes; probe again.")
        counts = sorted({point.tokens for point in points})
        low = max((count for count in counts if count <= tokens), default=counts[0])
        high = min((count for count in counts if count >= tokens), default=counts[-1])
        first, last = (_at_size(points, count, set_bytes) for count in (low, high))
        if tokens > high:
            return last * tokens / high
        part = (tokens - low) / (high - low) if high > low else 0.0
        return first + part * (last - first)


def _at_size(points: Sequence[ProductPoint], tokens: int, set_bytes: float) -> float:
    """Seconds per weight between the two sizes nearest to `set_bytes`, in its logarithm."""
    sized = sorted((item.set_bytes, item.seconds) for item in points if item.tokens == tokens)
    if set_bytes <= sized[0][0]:
        return sized[0][1]
    for (small, fast), (large, slow) in pairwise(sized):
        if set_bytes <= large:
            part = math.log(set_bytes / small) / math.log(large / small)
            return fast + part * (slow - fast)
    return sized[-1][1]


def step_terms(graph: Graph, step: Step, calibration: Calibration) -> Terms:
    """The terms of a step with all threads of the calibration."""
    sums = Terms(step=1.0)
    for item in graph.operators:
        sums = sums.plus(operator_terms(item, graph, step, calibration))
    blocks = sum(item.count for item in graph.operators if item.kind == "scores")
    # One token is normed by every worker; more are split, behind a barrier of their own.
    phases = 5 if step.num_tokens == 1 else 9
    return sums.plus(Terms(phase=float(phases * blocks + (2 if step.logits else 0))))


def step_seconds(graph: Graph, step: Step, calibrations: Sequence[Calibration]) -> float:
    """Seconds of a step, by the calibration of the threads that the engine would use.

    The last of `calibrations` is that of all threads. Of a step between 0.2 and 4 million weights
    the engine finds out whether one thread is faster, so here the least counts too.
    """
    most = calibrations[-1]
    chosen = [item for item in calibrations if item.threads in _threads(graph, most.threads)]
    return min(
        step_terms(graph, step, item).dot(item.seconds_with(graph.cache_bits))
        for item in chosen or calibrations[-1:]
    )


def _threads(graph: Graph, threads: int) -> tuple[int, ...]:
    """Numbers of threads the engine may choose for a step; the faster is taken."""
    products = [item for item in graph.operators if item.kind == "product"]
    work = sum(item.count * item.tokens * item.rows * item.columns for item in products)
    if work < _SMALL_WORK:
        return (1,)
    return (threads,) if work >= _LARGE_WORK else (1, threads)


def operator_terms(item: Operator, graph: Graph, step: Step, calibration: Calibration) -> Terms:
    """What one operator adds to the terms of a step, all its times together."""
    workers = calibration.threads
    tokens, share = step.num_tokens, 1.0 / workers
    match item.kind:
        case "product":
            each = calibration.product_seconds(item.planes, item.tokens, graph.memory_bytes)
            seconds = each * item.rows * item.columns * _imbalance(item.rows, workers)
            begun = ceil_div(item.rows, 32) * ceil_div(item.tokens, _BLOCK_TOKENS)
            found = Terms(product=seconds, tile=begun * share)
        case "scores":
            found = _attention_terms(item, step, workers)
        case "softmax" | "mix" | "sample":
            found = Terms()  # within the terms of scores, and of the step
        case "gate":
            found = Terms(gate=item.values * share, call=tokens * share)
        case "rotate" | "store":
            found = Terms(value=item.values * share, call=_heads(item, graph) * tokens * share)
        case "bias":
            found = Terms(value=item.values * share, call=tokens * share)
        case _:
            # One token is normed, added and quantized by every worker for itself.
            share = 1.0 if tokens == 1 else share
            found = Terms(value=item.values * share, call=tokens * share)
    return Terms().plus(found, item.count)


def _heads(item: Operator, graph: Graph) -> int:
    """Heads that a rotation turns, or keys and values that are stored, for one token."""
    scores = next(other for other in graph.operators if other.kind == "scores")
    return 2 * scores.groups + (scores.heads if item.kind == "rotate" else 0)


def _imbalance(rows: int, workers: int) -> float:
    """How much longer the busiest worker takes than the mean: tiles are whole."""
    tiles = ceil_div(rows, 32)
    return ceil_div(tiles, workers) * workers / tiles


def _attention_terms(item: Operator, step: Step, workers: int) -> Terms:
    """Keys and values are loaded once for the query rows of a tile, and met by each of them."""
    heads_per_group = item.heads // item.groups
    head_dim = item.operations // (2 * item.heads * item.visible)
    sharing = min(step.tokens, max(1, _TILE_QUERY_ROWS // heads_per_group))
    tasks = item.groups * step.sequences * ceil_div(step.tokens, sharing)
    most = workers if tasks >= workers or step.cached >= _SPLIT_CONTEXT else tasks
    each = item.visible / most
    return Terms(
        call=float(tasks * item.heads / item.groups * sharing / most),
        load=2 * each * item.groups * head_dim / sharing,
        row=2 * each * item.heads * head_dim,
        entry=each * item.heads,
    )
