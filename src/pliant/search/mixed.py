"""Mixed bits: the planes of a chosen shape dealt out anew, matrix by matrix, within its budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import msgspec

from pliant.bits import BitPlan, BlockBits, plane_bytes, scale_bytes
from pliant.errors import DoesNotFitError
from pliant.search.allocation import Option, Options, allocate
from pliant.search.candidate import Candidate
from pliant.search.story import Scored, Search
from pliant.spec import BLOCK_MATRICES
from pliant.subnet import Subnet

#: Costs of each matrix by plane count, as `Sensitivities.matrices` holds them.
Costs = Mapping[str, Mapping[int, float]]


def matrix_options(subnet: Subnet, costs: Costs) -> Options:
    """What each matrix of the subnet's shape may read, with bytes as cut and cost as measured."""
    return {
        cut.name: [
            Option(
                planes=planes,
                num_bytes=planes * plane_bytes(cut.rows, cut.columns)
                + scale_bytes(cut.rows, cut.columns),
                cost=cost,
            )
            for planes, cost in sorted(costs[cut.name].items())
        ]
        for cut in subnet.matrices()
    }


def with_planes(subnet: Subnet, planes: Mapping[str, int]) -> Subnet:
    """The subnet reading `planes[name]` of each of its matrices."""
    blocks = []
    for block, uniform in zip(subnet.shape.blocks, subnet.bits.blocks, strict=True):
        counts = {
            matrix: planes.get(f"blocks.{block}.{matrix}", getattr(uniform, matrix))
            for matrix in BLOCK_MATRICES
        }
        blocks.append(BlockBits(**counts))
    embedding = planes["embedding"]
    plan = BitPlan(embedding, planes.get("head", embedding), tuple(blocks), subnet.bits.cache)
    return msgspec.structs.replace(subnet, bits=plan)


def mixed(
    base: Candidate, costs: Costs, budget_bytes: int, memory: Callable[[Subnet], int]
) -> Candidate | None:
    """The shape of `base` with the planes of least summed cost within `budget_bytes` of memory.

    None where matrices were not measured, or not at so few planes as the budget asks for, or where
    the planes come out as they were. The predicted
    loss moves by the difference of the costs: they are small where it matters and taken as they
    add.
    """
    if not costs:
        return None
    options = matrix_options(base.subnet, costs)
    weights = sum(cut.num_bytes for cut in base.subnet.matrices())
    try:
        planes = allocate(options, budget_bytes - (memory(base.subnet) - weights))
    except DoesNotFitError:
        return None
    subnet = with_planes(base.subnet, planes)
    if subnet == base.subnet:
        return None
    before = {cut.name: cut.planes for cut in base.subnet.matrices()}
    gains = [
        costs[name][planes[name]] - costs[name].get(before[name], costs[name][planes[name]])
        for name in planes
    ]
    return msgspec.structs.replace(
        base,
        subnet=subnet,
        predicted_loss=base.predicted_loss + sum(gains),
        memory_bytes=memory(subnet),
        is_mixed=True,
    )


def with_mixed_bits(
    found: Search,
    costs: Costs,
    budget_bytes: int,
    memory: Callable[[Subnet], int],
    score: Callable[[Candidate], float],
) -> Search:
    """The search with the chosen shape measured at mixed bits too; the better one is chosen."""
    candidate = mixed(found.chosen.candidate, costs, budget_bytes, memory)
    if candidate is None:
        return found
    measured = Scored(candidate=candidate, loss=score(candidate))
    if not math.isfinite(measured.loss):
        return found
    verified = tuple(sorted((*found.verified, measured), key=lambda item: item.loss))
    return msgspec.structs.replace(found, chosen=verified[0], verified=verified)
