"""Fit an artifact to a budget: predict every cut, measure the best few, choose."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from pliant.costs import MemoryCost, WorkingSet, subnet_memory
from pliant.errors import UnsupportedError
from pliant.measurement import Progress, silent
from pliant.recipes.measure import text_loss
from pliant.runtime.text_engine import Pliant
from pliant.search import (
    Budget,
    Candidate,
    Search,
    SearchSpace,
    candidates,
    predicted_frontier,
    search,
)
from pliant.sensitivities import Sensitivities
from pliant.subnet import CutAddress, Subnet

#: Tokens of cache that a budget pays for unless another context is asked for: a short exchange.
DEFAULT_CONTEXT = 128
#: Candidates that are measured before one is chosen.
VERIFIED = 3


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """Every cut that can be predicted, with its memory at `context` cached tokens.

    `rank` is that of the artifact's adapters, 0 without them.
    """

    candidates: tuple[Candidate, ...]
    frontier: tuple[Candidate, ...]
    sensitivities: Sensitivities
    context: int
    rank: int = 0

    def memory(self, candidate: Candidate) -> MemoryCost:
        """Where the bytes of a candidate go."""
        return subnet_memory(candidate.subnet, WorkingSet(context=self.context), self.rank)

    def predicted_increase(self, candidate: Candidate) -> float:
        """The predicted loss relative to the dense model's: 0.05 is 5 % more."""
        return candidate.predicted_loss / self.sensitivities.dense_loss - 1


class Fit(msgspec.Struct, frozen=True, kw_only=True):
    """What `fit` found: losses in `search` are bits per byte of the text, by the engine.

    `dense_bits_per_byte` is that of the full model at all planes.
    """

    offer: Offer
    search: Search
    dense_bits_per_byte: float


def offer(model: Pliant, context: int | None = None) -> Offer:
    """Every depth x width x planes x vocabulary planes with a stored sensitivity.

    Raises `UnsupportedError` where the artifact was built without sensitivities.
    """
    manifest = model.artifact.manifest
    if manifest.sensitivities is None:
        raise UnsupportedError(
            f"{model.artifact.path} was built without sensitivities, so its cuts cannot be "
            "predicted; build it again, or cut it by hand with `pliant cut`."
        )
    sensitivities = manifest.sensitivities
    tokens = context or min(DEFAULT_CONTEXT, model.artifact.spec.max_context)
    working = WorkingSet(context=tokens)
    rank = model.artifact.adapters.rank if model.artifact.adapters else 0

    def resolve(address: CutAddress) -> Subnet:
        return model.subnet(str(address))

    def memory(subnet: Subnet) -> int:
        return subnet_memory(subnet, working, rank).total_bytes

    found = candidates(SearchSpace.measured(sensitivities), sensitivities, resolve, memory)
    return Offer(
        candidates=tuple(found),
        frontier=tuple(predicted_frontier(found)),
        sensitivities=sensitivities,
        context=tokens,
        rank=rank,
    )


def fit(
    model: Pliant,
    budget: Budget,
    documents: Sequence[str],
    *,
    context: int | None = None,
    verify: int = VERIFIED,
    threads: int | None = None,
    progress: Progress = silent,
) -> Fit:
    """The subnet of an artifact with the lowest measured loss on `documents` within `budget`.

    The `verify` best predicted candidates and the dense baseline are measured with the engine.
    Raises `DoesNotFitError` where nothing fits, naming the smallest subnet, and
    `QualityFloorError` where the best loses more than the budget allows.
    """
    offered = offer(model, context)
    # Before anything is measured: a budget that nothing keeps is refused at once.
    budget.fitting(offered.candidates)
    measured: dict[Subnet, float] = {}

    def score(subnet: Subnet) -> float:
        progress("measuring", len(measured), verify + 2)
        if subnet not in measured:
            loss = text_loss(model, subnet, documents, threads)
            measured[subnet] = loss.bits_per_byte
        return measured[subnet]

    dense = score(model.subnet())
    found = search(
        offered.candidates,
        lambda candidate: score(candidate.subnet),
        budget,
        verify=verify,
        dense_loss=dense,
    )
    progress("measuring", verify + 2, verify + 2)
    return Fit(offer=offered, search=found, dense_bits_per_byte=dense)
