"""Properties of the search over spaces and losses drawn at random."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pliant.bits import BitPlan
from pliant.errors import DoesNotFitError, QualityFloorError, UsageError
from pliant.search import Budget, Candidate, SearchSpace, candidates, frontier, search, spread
from pliant.search.story import predicted_frontier
from pliant.sensitivities import Sensitivities
from pliant.shape import SubnetShape
from pliant.spec import ModelSpec
from pliant.subnet import CutAddress, Subnet

SPEC = ModelSpec(
    architecture="llama", vocab_size=101, hidden_size=48, num_blocks=4, num_heads=4, num_groups=2,
    head_dim=12, ffn_size=160, max_context=64, attention_scale=12**-0.5, tied_embeddings=True,
)  # fmt: skip


def resolve(address: CutAddress) -> Subnet:
    depth = address.depth or SPEC.num_blocks
    shape = SubnetShape.uniform(SPEC, tuple(range(depth)), address.width, alignment=32)
    return Subnet(
        SPEC, shape, BitPlan.uniform(depth, address.planes or 8, address.vocabulary_planes)
    )


def weight_bytes(subnet: Subnet) -> int:
    return subnet.weight_bytes


def losses(keys: tuple[float, ...], increases: list[float]) -> dict[float, float]:
    return dict(zip(keys, [2.0 + increase for increase in increases], strict=True))


AXES = ((1, 2, 3, 4), (0.5, 0.75, 1.0), (1, 2, 3, 4, 8), (2, 4, 8))


@st.composite
def sensitivities(draw: st.DrawFn) -> Sensitivities:
    def axis(keys: tuple[float, ...]) -> dict[float, float]:
        increases = draw(st.lists(st.floats(0, 3), min_size=len(keys), max_size=len(keys)))
        return losses(keys, sorted(increases, reverse=True))

    depth, width, planes, vocabulary = (axis(keys) for keys in AXES)
    return Sensitivities(
        dense_loss=2.0,
        depth={int(key): loss for key, loss in depth.items()},
        width=width,
        planes={int(key): loss for key, loss in planes.items()},
        vocabulary_planes={int(key): loss for key, loss in vocabulary.items()},
    )


def offered(measured: Sensitivities) -> list[Candidate]:
    return candidates(SearchSpace.measured(measured), measured, resolve, weight_bytes)


EXAMPLE = Sensitivities(
    dense_loss=2.0,
    depth={1: 4.0, 2: 3.0, 3: 2.4, 4: 2.0},
    width={0.5: 2.6, 0.75: 2.2, 1.0: 2.0},
    planes={1: 6.0, 2: 3.0, 3: 2.3, 4: 2.1, 8: 2.0},
    vocabulary_planes={2: 2.9, 4: 2.05, 8: 2.0},
)
ALL = offered(EXAMPLE)


def test_every_cut_of_the_grid_is_offered_once() -> None:
    # Two groups cannot be cut to three quarters, but 160 neurons can: all three widths differ.
    assert len(ALL) == 4 * 3 * 5 * 3
    assert len({candidate.subnet for candidate in ALL}) == len(ALL)
    assert len({str(candidate.address) for candidate in ALL}) == len(ALL)
    assert all(resolve(CutAddress.parse(str(c.address))) == c.subnet for c in ALL)


def test_widths_that_round_to_one_shape_are_one_candidate() -> None:
    space = SearchSpace(depths=(4,), widths=(0.98, 1.0), planes=(4,), vocabulary_planes=(4,))
    measured = Sensitivities(
        dense_loss=2.0, depth={4: 2.0}, width={0.98: 2.1, 1.0: 2.0}, planes={4: 2.0},
        vocabulary_planes={4: 2.0},
    )  # fmt: skip
    (only,) = candidates(space, measured, resolve, weight_bytes)
    assert only.address.width == 1.0
    assert only.is_dense


@settings(deadline=None, max_examples=25)
@given(sensitivities())
def test_nothing_on_the_frontier_is_dominated(measured: Sensitivities) -> None:
    every = offered(measured)
    best = predicted_frontier(every)
    for kept in best:
        assert not any(
            other.memory_bytes <= kept.memory_bytes
            and other.predicted_loss <= kept.predicted_loss
            and (other.memory_bytes, other.predicted_loss)
            != (kept.memory_bytes, kept.predicted_loss)
            for other in every
        )
    for left_out in every:
        assert any(
            kept.memory_bytes <= left_out.memory_bytes
            and kept.predicted_loss <= left_out.predicted_loss
            for kept in best
        )


@settings(deadline=None, max_examples=25)
@given(sensitivities(), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_budget_is_never_worse(measured: Sensitivities, one: float, two: float) -> None:
    every = offered(measured)
    smallest, largest = every[0].memory_bytes, every[-1].memory_bytes
    small, large = sorted(smallest + int(share * (largest - smallest)) for share in (one, two))
    best_small = Budget(memory_bytes=small).fitting(every)[0]
    best_large = Budget(memory_bytes=large).fitting(every)[0]
    assert best_small.memory_bytes <= small
    assert best_large.predicted_loss <= best_small.predicted_loss


@given(st.lists(st.tuples(st.integers(0, 9), st.floats(allow_nan=True)), max_size=30))
def test_frontier_descends_strictly_and_holds_no_nan(items: list[tuple[int, float]]) -> None:
    best = frontier(items, lambda item: item[0], lambda item: item[1])
    assert all(a[0] < b[0] and a[1] > b[1] for a, b in pairwise(best))
    assert all(loss == loss and loss < float("inf") for _, loss in best)


@given(st.lists(st.integers()), st.integers(0, 12))
def test_spread_keeps_both_ends_and_the_order(items: list[int], count: int) -> None:
    few = spread(items, count)
    assert len(few) == min(count, len(items))
    places = iter(items)
    assert all(item in places for item in few)
    if count >= 2 and items:
        assert (few[0], few[-1]) == (items[0], items[-1])


def test_chosen_is_measured_and_within_the_budget() -> None:
    scored: list[Candidate] = []

    def score(candidate: Candidate) -> float:
        scored.append(candidate)
        return candidate.predicted_loss + 0.01 * len(scored)

    budget = Budget(memory_bytes=ALL[len(ALL) // 2].memory_bytes)
    found = search(ALL, score, budget, verify=3)
    assert budget.holds(found.chosen.candidate)
    assert 3 <= len(scored) <= 4
    assert found.chosen == found.verified[0]
    assert {item.candidate.address for item in found.verified} == {c.address for c in scored}


def test_measurement_overrules_the_prediction() -> None:
    budget = Budget(memory_bytes=ALL[-1].memory_bytes)
    promised = budget.fitting(ALL)[0]
    found = search(ALL, lambda c: 9.0 if c == promised else c.predicted_loss, budget)
    assert found.chosen.candidate != promised


def test_the_dense_baseline_is_measured_and_wins_where_it_is_better() -> None:
    budget = Budget(memory_bytes=max(c.memory_bytes for c in ALL if c.is_dense))
    found = search(ALL, lambda c: 1.0 if c.is_dense else 2.0, budget, verify=1)
    assert found.baseline is not None
    assert found.baseline.candidate.is_dense
    assert found.chosen.candidate.is_dense


def test_nothing_fits_names_the_smallest() -> None:
    with pytest.raises(DoesNotFitError, match=f"smallest that exists is {ALL[0].address}"):
        search(ALL, lambda c: 0.0, Budget(memory_bytes=ALL[0].memory_bytes - 1))


def test_a_missed_quality_floor_says_by_how_much() -> None:
    budget = Budget(memory_bytes=ALL[-1].memory_bytes, max_loss_increase=0.05)
    with pytest.raises(QualityFloorError, match=r"loses \+50.00% and \+5.00% was allowed"):
        search(ALL, lambda c: 3.0, budget, dense_loss=2.0)
    assert search(ALL, lambda c: 2.09, budget, dense_loss=2.0).chosen.loss == 2.09


def test_losses_that_are_not_finite_are_rejected() -> None:
    budget = Budget(memory_bytes=ALL[-1].memory_bytes)
    promised = budget.fitting(ALL)[0]
    found = search(ALL, lambda c: float("nan") if c == promised else 3.0, budget)
    assert found.chosen.candidate != promised
    with pytest.raises(DoesNotFitError, match="not finite"):
        search(ALL, lambda c: float("inf"), budget)


@pytest.mark.parametrize(
    "wrong", [{"memory_bytes": 0}, {"memory_bytes": 1, "max_loss_increase": -0.1}]
)
def test_budgets_that_make_no_sense(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        Budget(**wrong)  # type: ignore[arg-type]


def test_an_empty_axis_is_refused() -> None:
    with pytest.raises(UsageError, match="no planes"):
        SearchSpace(depths=(1,), widths=(1.0,), planes=(), vocabulary_planes=(8,))
