"""The cache axis: only what is worth it, with exact bytes, and nothing worth it is missing."""

from __future__ import annotations

import pytest

from pliant.bits import BitPlan
from pliant.bits.cache import CacheFormat
from pliant.costs import WorkingSet, subnet_memory
from pliant.costs.memory import cache_bytes
from pliant.search import Budget, Candidate, SearchSpace, candidates, in_caches, search
from pliant.sensitivities import Sensitivities
from pliant.shape import SubnetShape
from pliant.spec import ModelSpec
from pliant.subnet import CutAddress, Subnet

SPEC = ModelSpec(
    architecture="llama", vocab_size=101, hidden_size=64, num_blocks=4, num_heads=4, num_groups=2,
    head_dim=32, ffn_size=128, max_context=4096, attention_scale=32**-0.5,
    tied_embeddings=True,
)  # fmt: skip
MEASURED = Sensitivities(
    dense_loss=2.0,
    depth={4: 2.0, 3: 2.2, 2: 2.7},
    width={1.0: 2.0, 0.5: 2.6},
    planes={8: 2.0, 4: 2.1, 2: 3.0},
    vocabulary_planes={8: 2.0, 4: 2.05},
    cache={16: 2.0, 8: 2.001, 4: 2.01, 3: 2.03, 2: 2.2},
)
CONTEXT = 2048
FEWER = [CacheFormat(bits=bits) for bits in (8, 4, 3, 2)]


def resolve(address: CutAddress) -> Subnet:
    blocks = tuple(range(address.depth or SPEC.num_blocks))
    shape = SubnetShape.uniform(SPEC, blocks, address.width)
    plan = BitPlan.uniform(len(blocks), address.planes or 8, address.vocabulary_planes)
    return Subnet(SPEC, shape, plan).with_cache(address.cache_bits)


def memory(subnet: Subnet) -> int:
    return subnet_memory(subnet, WorkingSet(context=CONTEXT)).total_bytes


def held_bytes(subnet: Subnet, cache: CacheFormat) -> int:
    return cache_bytes(subnet, CONTEXT, cache)


HELD = candidates(SearchSpace.measured(MEASURED), MEASURED, resolve, memory)
OTHERS = in_caches(HELD, FEWER, MEASURED, held_bytes)


def everything() -> list[Candidate]:
    """Every cut in every cache, the long way."""
    found = list(HELD)
    for cache in FEWER:

        def there(address: CutAddress, bits: int = cache.bits) -> Subnet:
            return resolve(address).with_cache(bits)

        found += candidates(SearchSpace.measured(MEASURED), MEASURED, there, memory)
    return found


def test_others_are_few_and_as_computed_alone() -> None:
    assert 0 < len(OTHERS) < len(FEWER) * len(HELD)
    alone = {item.subnet: item for item in everything()}
    for item in OTHERS:
        assert memory(item.subnet) == item.memory_bytes
        assert item.predicted_loss == pytest.approx(alone[item.subnet].predicted_loss)
        assert item.address == alone[item.subnet].address
        assert resolve(CutAddress.parse(str(item.address))) == item.subnet


def test_the_best_of_every_budget_is_among_them() -> None:
    whole, offered = everything(), [*HELD, *OTHERS]
    sizes = sorted({item.memory_bytes for item in whole})
    chosen = set()
    for size in sizes:
        budget = Budget(memory_bytes=size)
        best, expected = budget.fitting(offered)[0], budget.fitting(whole)[0]
        assert best.predicted_loss == pytest.approx(expected.predicted_loss)
        chosen.add(best.subnet.bits.cache.bits)
        dense = [[item.predicted_loss for item in found if item.is_dense and budget.holds(item)]
                 for found in (offered, whole)]  # fmt: skip
        assert min(dense[0], default=9) == pytest.approx(min(dense[1], default=9))
    assert chosen > {16, 4}


def test_a_cache_that_saves_nothing_is_not_offered() -> None:
    """Behind 100 tokens all entries of a coded cache are still float16."""
    found = in_caches(HELD, FEWER, MEASURED, lambda net, cache: cache_bytes(net, 100, cache))
    assert {item.subnet.bits.cache.bits for item in found} == {8}


def test_finalists_differ_in_more_than_their_cache() -> None:
    measured: list[Subnet] = []

    def score(candidate: Candidate) -> float:
        measured.append(candidate.subnet)
        return candidate.predicted_loss

    found = search([*HELD, *OTHERS], score, Budget(memory_bytes=400_000), verify=3)
    assert found.chosen.candidate.subnet.bits.cache.bits < 16
    plain = [subnet.with_cache(16) for subnet in measured[:3]]
    assert len(set(plain)) == 3


def test_what_was_not_measured_adds_nothing() -> None:
    assert MEASURED.cache_increase(2) == pytest.approx(0.2)
    assert MEASURED.cache_increase(32) == 0
