"""Fit an artifact to a budget: learn from some cuts, predict all, measure the best, choose."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import msgspec

from pliant.adapters import AdapterSpec, update_rank
from pliant.bits.cache import CacheFormat
from pliant.costs import MemoryCost, WorkingSet, subnet_memory
from pliant.costs.memory import cache_bytes
from pliant.errors import UnsupportedError
from pliant.measurement import Progress, silent
from pliant.recipes.device_limits import DeviceLimits
from pliant.recipes.study import STUDIED, Bench
from pliant.runtime.text_engine import Pliant
from pliant.search import (
    FEWER_CACHE_BITS,
    Budget,
    Candidate,
    LossPredictor,
    Search,
    SearchSpace,
    SpeedPredictor,
    axis_increases,
    candidates,
    evolve,
    in_caches,
    predicted_frontier,
    search,
    with_mixed_bits,
)
from pliant.search.evolution import Genome
from pliant.sensitivities import Sensitivities
from pliant.subnet import CutAddress, Subnet

#: Tokens of cache that a budget pays for unless another context is asked for: a short exchange.
DEFAULT_CONTEXT = 128
#: Candidates that are measured before one is chosen.
VERIFIED = 3
#: Cuts of a space up to which all are predicted; beyond it an evolution looks for good ones.
MOST_ENUMERATED = 20_000
#: Sizes, as shares of the full model's memory, at which evolutions make a frontier.
EVOLVED_SHARES = (1.0, 0.75, 0.5, 0.35, 0.25)


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """Every cut that can be predicted, with its memory at `context` cached tokens.

    `predictor_error` is the leave-one-out error of predictions learnt from measured cuts, in logs
    of the loss; None where they are additive sensitivities. `adapters` are those of the artifact.
    Every cut holds its cache as `cache`, and what is worth it in each of `fewer` too.
    """

    candidates: tuple[Candidate, ...]
    frontier: tuple[Candidate, ...]
    sensitivities: Sensitivities
    context: int
    predictor_error: float | None = None
    adapters: AdapterSpec | None = None
    cache: CacheFormat = CacheFormat()
    fewer: tuple[CacheFormat, ...] = ()

    def memory(self, candidate: Candidate) -> MemoryCost:
        """Where the bytes of a candidate go."""
        return self._memory(candidate.subnet)

    def memory_bytes(self, subnet: Subnet) -> int:
        """Bytes that a subnet needs while it runs."""
        return self._memory(subnet).total_bytes

    def _memory(self, subnet: Subnet) -> MemoryCost:
        working = WorkingSet(context=self.context)
        return subnet_memory(subnet, working, update_rank(subnet.spec, self.adapters, subnet.shape))

    def predicted_increase(self, candidate: Candidate) -> float:
        """The predicted loss relative to the dense model's: 0.05 is 5 % more."""
        return candidate.predicted_loss / self.sensitivities.dense_loss - 1

    def predicted_by(self, predictor: LossPredictor) -> Offer:
        """The same cuts with losses as a predictor foretells them.

        Which of them are worth having in fewer bits of cache is looked at anew.
        """
        dense = self.sensitivities.dense_loss

        def learnt(found: Sequence[Candidate]) -> list[Candidate]:
            ratios = predictor.predict([candidate.subnet for candidate in found])
            return [
                msgspec.structs.replace(candidate, predicted_loss=dense * float(ratio))
                for candidate, ratio in zip(found, ratios, strict=True)
            ]

        held = learnt([item for item in self.candidates if item.subnet.bits.cache == self.cache])
        others = self._in_fewer(held)
        found = self._of(held + (learnt(others) if others else []))
        return msgspec.structs.replace(found, predictor_error=predictor.error)

    def with_fewer(self) -> Offer:
        """The same cuts, and those of them that are worth it in each of `fewer`."""
        return self._of([*self.candidates, *self._in_fewer(self.candidates)])

    def _in_fewer(self, held: Sequence[Candidate]) -> list[Candidate]:
        def held_bytes(subnet: Subnet, cache: CacheFormat) -> int:
            return cache_bytes(subnet, self.context, cache)

        return in_caches(held, self.fewer, self.sensitivities, held_bytes)

    def _of(self, found: Sequence[Candidate]) -> Offer:
        ordered = sorted(found, key=lambda candidate: candidate.memory_bytes)
        return msgspec.structs.replace(
            self, candidates=tuple(ordered), frontier=tuple(predicted_frontier(ordered))
        )

    def timed_by(self, predictor: SpeedPredictor) -> Offer:
        """The same cuts with the seconds that decoding a token takes here."""
        seconds = predictor.predict([candidate.subnet for candidate in self.candidates])
        timed = [
            msgspec.structs.replace(candidate, seconds_per_token=float(paced))
            for candidate, paced in zip(self.candidates, seconds, strict=True)
        ]
        return self._of(timed)


class Fit(msgspec.Struct, frozen=True, kw_only=True):
    """What `fit` found: losses in `search` are bits per byte of the text, by the engine.

    `dense_bits_per_byte` is that of the full model at all planes. `studied` cuts have been measured
    on this text, now or before; `saved` says whether the artifact keeps them.
    """

    offer: Offer
    search: Search
    dense_bits_per_byte: float
    studied: int
    saved: bool


def offer(
    model: Pliant,
    context: int | None = None,
    budget: Budget | None = None,
    limits: DeviceLimits | None = None,
    kv_bits: int | None = None,
    kv_window: int | None = None,
) -> Offer:
    """Every depth x width x planes x vocabulary planes with a stored sensitivity.

    Where they are more than `MOST_ENUMERATED`, those that an evolution finds within `budget`, or
    within several of them where none is given. With `limits` only those fast and frugal enough on
    a device. The `context` is held in `kv_bits`; where these are left open, in 16, and of each
    predicted frontier in fewer bits, as far as their loss was measured; limits are looked at with
    the former. Raises `UnsupportedError` where the artifact was built without sensitivities,
    `DoesNotFitError` where none keeps the limits.
    """
    manifest = model.artifact.manifest
    if manifest.sensitivities is None:
        raise UnsupportedError(
            f"{model.artifact.path} was built without sensitivities, so its cuts cannot be "
            "predicted; build it again, or cut it by hand with `pliant cut`."
        )
    sensitivities = manifest.sensitivities
    tokens = context or min(DEFAULT_CONTEXT, model.artifact.spec.max_context)
    cache = CacheFormat().but(kv_bits, kv_window)
    fewer = tuple(
        cache.but(bits, kv_window)
        for bits in FEWER_CACHE_BITS
        if kv_bits is None and bits in sensitivities.cache
    )
    working = WorkingSet(context=tokens)

    def resolve(address: CutAddress) -> Subnet:
        return model.subnet(str(address)).with_cache(kv_bits, kv_window)

    def memory(subnet: Subnet) -> int:
        return subnet_memory(subnet, working, model.artifact.adapter_rank(subnet.shape)).total_bytes

    space = SearchSpace.measured(sensitivities)

    def of(addresses: SearchSpace | Sequence[CutAddress]) -> list[Candidate]:
        return candidates(addresses, sensitivities, resolve, memory)

    if len(space) <= MOST_ENUMERATED:
        found = of(space)
    else:
        saved = max((_saved(model.subnet(), tokens, cache, other) for other in fewer), default=0)
        limit = None if budget is None else budget.memory_bytes
        found = _evolved(space, of, limit, saved)
    if limits is not None:
        found = limits.kept(found, tokens)
    offered = Offer(
        candidates=tuple(found),
        frontier=(),
        sensitivities=sensitivities,
        context=tokens,
        cache=cache,
        fewer=fewer,
        adapters=model.artifact.adapters,
    )
    return offered.with_fewer()


def _saved(subnet: Subnet, context: int, cache: CacheFormat, other: CacheFormat) -> int:
    """Bytes that a context takes less in another format."""
    return cache_bytes(subnet, context, cache) - cache_bytes(subnet, context, other)


def fit(
    model: Pliant,
    budget: Budget,
    documents: Sequence[str],
    *,
    context: int | None = None,
    verify: int = VERIFIED,
    study: int = STUDIED,
    threads: int | None = None,
    limits: DeviceLimits | None = None,
    kv_bits: int | None = None,
    kv_window: int | None = None,
    progress: Progress = silent,
) -> Fit:
    """The subnet of an artifact with the lowest measured loss on `documents` within `budget`.

    `study` cuts spread over all are measured first and teach a `LossPredictor`; 0 leaves it at
    additive sensitivities. The `verify` best predicted candidates and the dense baseline are then
    measured, and timed where the budget bounds the speed, and the best of them once more with mixed
    bits: the planes of each matrix as its sensitivity asks. All measurements use the engine and are
    kept in the artifact, so that the next fit on the same text has only new finalists to measure,
    and never chooses worse than the best of what was measured before.
    Raises `DoesNotFitError` where nothing fits, naming the smallest subnet, and
    `QualityFloorError` where the best loses more than the budget allows. `limits` bound time and
    energy on any device. `kv_bits` and `kv_window` fix how the context is held, which is chosen
    too where they are left open; each cut is measured with the cache that it will run with.
    """
    offered = offer(model, context, budget, limits, kv_bits, kv_window)
    # Before anything is measured: a budget that nothing keeps is refused at once.
    budget.fitting(offered.candidates)
    bench = Bench(model, documents, threads)
    offered = _studied(offered, bench, study, progress)
    if budget.min_tokens_per_second is not None:
        offered = offered.timed_by(bench.speed_predictor(offered.candidates, progress))
    verified: set[Subnet] = set()

    def score(candidate: Candidate) -> float:
        progress("measuring", len(verified), verify + 2)
        verified.add(candidate.subnet)
        if budget.min_tokens_per_second is not None and not budget.is_fast(
            bench.seconds_per_token(candidate.subnet)
        ):
            return math.inf
        return bench.loss(candidate.subnet)

    dense = bench.loss(model.subnet())
    found = search(
        offered.candidates, score, budget,
        verify=verify, dense_loss=dense, measured_losses=bench.losses,
    )  # fmt: skip
    costs = offered.sensitivities.matrices
    found = with_mixed_bits(found, costs, budget.memory_bytes, offered.memory_bytes, score)
    progress("measuring", verify + 2, verify + 2)
    return Fit(
        offer=offered,
        search=found,
        dense_bits_per_byte=dense,
        studied=len(bench.losses),
        saved=bench.saved,
    )


def _studied(offered: Offer, bench: Bench, count: int, progress: Progress) -> Offer:
    """The offer with predictions learnt from `count` cuts; as it is where they are too few."""
    manifest = bench.artifact.manifest
    increases = axis_increases(
        offered.sensitivities, manifest.spec, manifest.alignment.neurons,
        lambda count: bench.artifact.subnet(f"b{count}"),
    )  # fmt: skip
    predictor = bench.predictor(
        offered.candidates, increases, offered.sensitivities.dense_loss, count, progress
    )
    return offered if predictor is None else offered.predicted_by(predictor)


def _evolved(
    space: SearchSpace,
    of: Callable[[Sequence[CutAddress]], list[Candidate]],
    limit: int | None,
    saved: int = 0,
) -> list[Candidate]:
    """The candidates that evolutions within `limit` bytes, or within several sizes, have seen.

    Caches of fewer bits save up to `saved` bytes: what fits with them is looked for too. Whatever
    fits nowhere leaves the smallest cut, for a message that names it.
    """
    seen: dict[Genome, Candidate] = {}

    def evaluate(genomes: Sequence[Genome]) -> list[tuple[float, float]]:
        for genome in genomes:
            (seen[genome],) = of([space.address(genome)])
        return [(seen[genome].memory_bytes, seen[genome].predicted_loss) for genome in genomes]

    largest = tuple(size - 1 for size in space.sizes)
    evaluate([largest, (0,) * len(largest)])
    whole = seen[largest].memory_bytes
    limits = [round(whole * share) for share in EVOLVED_SHARES]
    if limit:
        limits = [limit, limit + saved] if saved else [limit]
    for most_bytes in limits:
        evolve(space.sizes, evaluate, most_bytes)
    distinct = {candidate.subnet: candidate for candidate in seen.values()}
    return sorted(distinct.values(), key=lambda candidate: candidate.memory_bytes)
