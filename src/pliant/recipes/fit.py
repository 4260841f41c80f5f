"""Fit an artifact to a budget: predict every cut, measure the best few, choose."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from pliant.costs import MemoryCost, WorkingSet, subnet_memory
from pliant.errors import UnsupportedError
from pliant.measurement import Progress, silent
from pliant.recipes.device_limits import DeviceLimits
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
    with_mixed_bits,
)
from pliant.sensitivities import Sensitivities
from pliant.subnet import CutAddress, Subnet

#: Tokens of cache that a budget pays for unless another context is asked for: a short exchange.
DEFAULT_CONTEXT = 128
#: Candidates that are measured before one is chosen.
VERIFIED = 3


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """Every cut that can be predicted, with its memory at `context` cached tokens."""

    candidates: tuple[Candidate, ...]
    frontier: tuple[Candidate, ...]
    sensitivities: Sensitivities
    context: int

    def memory(self, candidate: Candidate) -> MemoryCost:
        """Where the bytes of a candidate go."""
        return subnet_memory(candidate.subnet, WorkingSet(context=self.context))

    def memory_bytes(self, subnet: Subnet) -> int:
        """Bytes that a subnet needs while it runs."""
        return subnet_memory(subnet, WorkingSet(context=self.context)).total_bytes

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


def offer(model: Pliant, context: int | None = None, limits: DeviceLimits | None = None) -> Offer:
    """Every depth x width x planes x vocabulary planes with a stored sensitivity.

    With `limits` only those fast and frugal enough on a device. Raises `UnsupportedError` where
    the artifact was built without sensitivities, `DoesNotFitError` where none keeps the limits.
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

    def resolve(address: CutAddress) -> Subnet:
        return model.subnet(str(address))

    def memory(subnet: Subnet) -> int:
        return subnet_memory(subnet, working).total_bytes

    found = candidates(SearchSpace.measured(sensitivities), sensitivities, resolve, memory)
    if limits is not None:
        found = limits.kept(found, tokens)
    return Offer(
        candidates=tuple(found),
        frontier=tuple(predicted_frontier(found)),
        sensitivities=sensitivities,
        context=tokens,
    )


def fit(
    model: Pliant,
    budget: Budget,
    documents: Sequence[str],
    *,
    context: int | None = None,
    verify: int = VERIFIED,
    threads: int | None = None,
    limits: DeviceLimits | None = None,
    progress: Progress = silent,
) -> Fit:
    """The subnet of an artifact with the lowest measured loss on `documents` within `budget`.

    The `verify` best predicted candidates and the dense baseline are measured with the engine, and
    the best of them once more with mixed bits: the planes of each matrix as its sensitivity asks.
    Raises `DoesNotFitError` where nothing fits, naming the smallest subnet, and
    `QualityFloorError` where the best loses more than the budget allows. `limits` bound time and
    energy on any device.
    """
    offered = offer(model, context, limits)
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
    costs = offered.sensitivities.matrices
    found = with_mixed_bits(
        found, costs, budget.memory_bytes, offered.memory_bytes,
        lambda candidate: score(candidate.subnet),
    )  # fmt: skip
    progress("measuring", verify + 2, verify + 2)
    return Fit(offer=offered, search=found, dense_bits_per_byte=dense)
