"""The knapsack against trying everything, the two rules beside it, and mixed plans of subnets."""

from itertools import product

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pliant.errors import DoesNotFitError
from pliant.search import (
    Candidate,
    Option,
    Scored,
    Search,
    allocate,
    allocation,
    matrix_options,
    mixed,
    rank_and_cut,
    sensitive_blocks,
    with_mixed_bits,
)
from pliant.spec import ModelSpec
from pliant.subnet import CutAddress, Subnet

SPEC = ModelSpec(
    architecture="llama", vocab_size=101, hidden_size=48, num_blocks=3, num_heads=4, num_groups=2,
    head_dim=12, ffn_size=160, max_context=64, attention_scale=12**-0.5, tied_embeddings=True,
)  # fmt: skip
COUNTS = (2, 3, 4, 8)


def total(options, planes, field):
    return sum(
        getattr(option, field)
        for name, found in options.items()
        for option in found
        if option.planes == planes[name]
    )


@st.composite
def problems(draw):
    options = {}
    for number in range(draw(st.integers(1, 4))):
        size = draw(st.integers(1, 5)) * 128
        costs = draw(st.lists(st.floats(0, 9), min_size=3, max_size=3))
        options[f"blocks.{number // 2}.{number}"] = [
            Option(planes, planes * size + 64, cost)
            for planes, cost in zip((2, 3, 5), costs, strict=True)
        ]
    least = sum(found[0].num_bytes for found in options.values())
    return options, least + draw(st.integers(0, 6000))


@settings(max_examples=150, deadline=None)
@given(problems())
def test_nothing_that_fits_costs_less(problem):
    options, budget = problem
    planes = allocate(options, budget)
    assert total(options, planes, "num_bytes") <= budget
    every = (
        sum(option.cost for option in choice)
        for choice in product(*options.values())
        if sum(option.num_bytes for option in choice) <= budget
    )
    assert total(options, planes, "cost") == pytest.approx(min(every))


@settings(max_examples=60, deadline=None)
@given(problems(), st.sampled_from([rank_and_cut, sensitive_blocks]))
def test_the_rules_keep_the_budget_and_use_neighbouring_counts(problem, rule):
    options, budget = problem
    planes = rule(options, budget)
    assert total(options, planes, "num_bytes") <= budget
    assert len(set(planes.values())) <= 2
    costs = {
        n: [msgspec.structs.replace(o, cost=9 / o.planes) for o in f] for n, f in options.items()
    }
    # With costs that fall, the programme is never behind a rule.
    best = total(costs, allocate(costs, budget), "cost")
    assert best <= total(costs, rule(costs, budget), "cost") + 1e-9


def test_the_most_sensitive_get_more_first():
    options = {
        name: [Option(2, 200, cost), Option(3, 300, cost / 4)]
        for name, cost in (("blocks.0.q", 1.0), ("blocks.0.k", 5.0), ("blocks.1.q", 2.0))
    }
    assert rank_and_cut(options, 700) == {"blocks.0.q": 2, "blocks.0.k": 3, "blocks.1.q": 2}
    assert sensitive_blocks(options, 800) == {"blocks.0.q": 3, "blocks.0.k": 3, "blocks.1.q": 2}
    assert sensitive_blocks(options, 700) == dict.fromkeys(options, 2)
    assert allocate(options, 900) == dict.fromkeys(options, 3)


def test_too_small_a_budget_names_the_least():
    options = {"a": [Option(2, 200, 1.0)], "b": [Option(2, 100, 1.0), Option(3, 150, 0.5)]}
    for rule in (allocate, rank_and_cut, sensitive_blocks):
        with pytest.raises(DoesNotFitError, match="need 300 at least"):
            rule(options, 299)


def test_costs_that_are_not_finite_are_not_taken():
    options = {"a": [Option(2, 200, float("nan")), Option(3, 300, 1.0), Option(4, 400, 2.0)]}
    assert allocate(options, 1000) == {"a": 3}


def test_more_bytes_than_cells_round_up_and_keep_the_budget(monkeypatch):
    monkeypatch.setattr(allocation, "_MOST_CELLS", 16)
    options = {
        str(number): [Option(2, 1000 + number, 1.0), Option(3, 1501 + 3 * number, 0.1)]
        for number in range(20)
    }
    budget = 26_000
    planes = allocate(options, budget)
    used = total(options, planes, "num_bytes")
    assert budget - 20 * (11_000 // 16 + 1) <= used <= budget


def candidate(planes=3):
    subnet = Subnet.full(SPEC, planes)
    return Candidate(
        address=CutAddress(None, 1.0, planes), subnet=subnet, predicted_loss=2.0,
        memory_bytes=memory(subnet),
    )  # fmt: skip


def memory(subnet):
    return subnet.weight_bytes + 1000


def costs(**special):
    names = [cut.name for cut in candidate().subnet.matrices()]
    return {
        name: {count: special.get(name.replace(".", "_"), 1.0) * 4.0**-count for count in COUNTS}
        for name in names
    }


def test_a_sensitive_matrix_reads_more_planes_than_the_others():
    base = candidate()
    found = mixed(base, costs(blocks_1_down=500.0), base.memory_bytes, memory)
    assert found.is_mixed and found.memory_bytes <= base.memory_bytes
    assert found.predicted_loss < base.predicted_loss
    assert found.subnet.shape == base.subnet.shape
    plan = found.subnet.bits
    counts = [getattr(block, name) for block in plan.blocks for name in block.__struct_fields__]
    assert plan.blocks[1].down == max(counts) > min(counts)
    assert Subnet.from_json(found.subnet.to_json()) == found.subnet
    options = matrix_options(base.subnet, costs())
    for name, offered in options.items():
        cut = next(cut for cut in base.subnet.matrices() if cut.name == name)
        assert {o.planes: o.num_bytes for o in offered}[
            cut.planes if cut.planes in COUNTS else 3
        ] == cut.num_bytes


def test_without_costs_nothing_is_mixed():
    assert mixed(candidate(), {}, 10**9, memory) is None
    assert mixed(candidate(8), costs(), 10**9, memory) is None


def test_fewer_bytes_than_were_measured_are_not_mixed():
    assert mixed(candidate(), costs(), 2000, memory) is None


def test_mixed_bits_keep_the_cache():
    base = msgspec.structs.replace(candidate(), subnet=candidate().subnet.with_cache(3, 128))
    found = mixed(base, costs(blocks_1_down=500.0), base.memory_bytes, memory)
    assert found.subnet.bits.cache == base.subnet.bits.cache


@pytest.mark.parametrize(("loss", "is_mixed"), [(1.5, True), (2.5, False), (float("nan"), False)])
def test_the_better_measured_is_chosen(loss, is_mixed):
    base = Scored(candidate=candidate(), loss=2.0)
    before = Search(chosen=base, verified=(base,), baseline=None, frontier=())
    after = with_mixed_bits(
        before, costs(blocks_1_down=500.0), base.candidate.memory_bytes, memory, lambda _: loss
    )
    assert after.chosen.candidate.is_mixed == is_mixed
    assert after.chosen.loss == min(2.0, loss) or not is_mixed
