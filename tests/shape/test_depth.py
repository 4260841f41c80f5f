"""Depth searches: the properties AmoebaLLM's programme has, and those every method must have."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pliant.errors import CheckpointError, UsageError
from pliant.shape import (
    DEPTH_METHODS,
    CachedEvaluation,
    DepthChoice,
    DepthMethod,
    DepthPath,
    Keep,
    depth_path,
    num_evaluations,
    one_by_one,
    programme_rows,
)

Loss = Callable[[Keep], float]


def coupled_loss(num_blocks: int, seed: int) -> Loss:
    """A toy loss with pairwise couplings, so that no method is exact on it."""
    random = np.random.default_rng(seed)
    alone = random.random(num_blocks)
    pairs = 0.6 * random.normal(size=(num_blocks, num_blocks))

    def loss(keep: Keep) -> float:
        dropped = [block for block in range(num_blocks) if block not in keep]
        coupling = sum(pairs[pair] for pair in itertools.combinations(dropped, 2))
        return float(3 + alone[dropped].sum() + coupling)

    return loss


def additive_loss(num_blocks: int, seed: int) -> Loss:
    """A toy loss that is a sum over dropped blocks."""
    alone = np.random.default_rng(seed).random(num_blocks)
    return lambda keep: float(1 + sum(alone[b] for b in range(num_blocks) if b not in keep))


def run(method: DepthMethod, num_blocks: int, min_blocks: int, loss: Loss, **options: object):
    influence = list(np.random.default_rng(0).random(num_blocks))
    return depth_path(
        method, num_blocks, min_blocks, one_by_one(loss), influence=influence, **options
    )


cases = st.tuples(
    st.integers(2, 9), st.integers(0, 2), st.integers(0, 2), st.integers(0, 999)
).filter(lambda case: case[0] > case[1] + case[2])


@settings(max_examples=60, deadline=None)
@given(case=cases, data=st.data())
def test_the_programme_has_its_five_properties(
    case: tuple[int, int, int, int], data: st.DataObject
) -> None:
    num_blocks, first, last, seed = case
    candidates = tuple(range(first, num_blocks - last))[::-1]
    count = len(candidates)
    removals = data.draw(st.integers(1, min(count, num_blocks - 1)))
    loss = coupled_loss(num_blocks, seed)
    everything = tuple(range(num_blocks))
    dense = DepthChoice(everything, loss(everything))
    evaluate = CachedEvaluation(one_by_one(loss))
    rows = list(programme_rows(dense, candidates, removals, evaluate))

    assert evaluate.num_evaluated == sum(min(n, removals) for n in range(1, count + 1))
    assert evaluate.num_evaluated == num_evaluations("amoeba", count, removals)
    # (i) one removal is the best single removal
    singles = [loss(tuple(b for b in everything if b != drop)) for drop in candidates]
    assert rows[-1][1] is not None
    assert rows[-1][1].loss == min(singles)
    for n, m in itertools.product(range(count + 1), range(removals + 1)):
        choice = rows[n][m]
        if m > n:
            assert choice is None
            continue
        assert choice is not None
        # (ii) never worse with more candidates
        if n > m:
            assert choice.loss <= rows[n - 1][m].loss
        # (iii) the loss is that of the blocks, (iv) exactly m blocks are dropped
        assert choice.loss == loss(choice.blocks)
        assert len(choice.blocks) == num_blocks - m
        assert set(everything) - set(candidates[:n]) <= set(choice.blocks)
    for m in range(1, removals + 1):
        # (v) the m deepest candidates are among the sets tried
        deepest = tuple(b for b in everything if b not in candidates[:m])
        assert rows[m][m].blocks == deepest
        assert rows[-1][m].loss <= loss(deepest)


@settings(max_examples=40, deadline=None)
@given(case=cases)
def test_on_an_additive_loss_programme_and_greedy_are_exhaustive(
    case: tuple[int, int, int, int],
) -> None:
    num_blocks, first, last, seed = case
    loss = additive_loss(num_blocks, seed)
    options = {"protect_first": first, "protect_last": last}
    min_blocks = max(1, first + last)
    best = run("exhaustive", num_blocks, min_blocks, loss, **options)
    for method in ("amoeba", "greedy", "single-drop"):
        path = run(method, num_blocks, min_blocks, loss, **options)
        assert path.blocks == best.blocks
        np.testing.assert_allclose(list(path.losses.values()), list(best.losses.values()))


@pytest.mark.parametrize("method", DEPTH_METHODS)
@pytest.mark.parametrize(
    ("first", "last", "min_blocks"), [(0, 1, 1), (2, 0, 3), (1, 2, 5), (0, 0, 1)]
)
def test_every_method_gives_a_path_of_measured_losses(
    method: DepthMethod, first: int, last: int, min_blocks: int
) -> None:
    loss = coupled_loss(7, 11)
    path = run(method, 7, min_blocks, loss, protect_first=first, protect_last=last)
    assert list(path.blocks) == list(range(7, min_blocks - 1, -1))
    protected = {*range(first), *range(7 - last, 7)}
    for depth, blocks in path.blocks.items():
        assert len(blocks) == depth
        assert list(blocks) == sorted(blocks)
        assert protected <= set(blocks)
        assert path.losses[depth] == loss(blocks)
    assert path.num_evaluations <= num_evaluations(method, 7 - first - last, 7 - min_blocks)
    best = run("exhaustive", 7, min_blocks, loss, protect_first=first, protect_last=last)
    assert all(regret >= 0 for regret in path.regret(best).values())
    if method in ("greedy", "single-drop", "influence", "deepest", "random"):
        assert path.is_nested
    assert msgspec.json.decode(msgspec.json.encode(path), type=DepthPath) == path
    hash(path)


def test_the_programme_may_beat_greedy_and_is_then_not_nested() -> None:
    # Dropping 0 alone is best, yet 1 and 2 together are better than anything with 0.
    losses = {(1, 2, 3): 1.0, (0, 2, 3): 2.0, (0, 1, 3): 2.0, (0, 3): 2.1, (2, 3): 9.0, (1, 3): 9.0}
    loss: Loss = lambda keep: losses.get(keep, 0.5 if len(keep) == 4 else 20.0)  # noqa: E731
    programme, greedy = run("amoeba", 4, 2, loss), run("greedy", 4, 2, loss)
    assert programme.blocks[2] == (0, 3)
    assert not programme.is_nested
    assert greedy.is_nested
    assert greedy.regret(programme) == {4: 0, 3: 0, 2: pytest.approx(6.9)}


def test_equal_losses_drop_the_deeper_blocks() -> None:
    for method in ("amoeba", "greedy", "single-drop", "exhaustive", "deepest"):
        path = run(method, 6, 2, lambda keep: 1.0)
        assert path.blocks[2] == (0, 5), method
    flat = depth_path("influence", 6, 2, one_by_one(lambda keep: 1.0), influence=[0.0] * 6)
    assert flat.blocks[2] == (0, 5)


def test_influence_drops_the_least_influential_unprotected_blocks() -> None:
    path = depth_path(
        "influence", 5, 2, one_by_one(len), influence=[0.9, 0.1, 0.5, 0.2, 0.0], protect_last=1
    )
    assert path.blocks == {5: (0, 1, 2, 3, 4), 4: (0, 2, 3, 4), 3: (0, 2, 4), 2: (0, 4)}
    for influence in (None, [1.0, 2.0]):
        with pytest.raises(UsageError, match="influence"):
            depth_path("influence", 5, 2, one_by_one(len), influence=influence)


def test_random_follows_its_seed() -> None:
    paths = {run("random", 9, 3, len, seed=seed).blocks[3] for seed in range(12)}
    assert len(paths) > 3
    assert run("random", 9, 3, len, seed=4) == run("random", 9, 3, len, seed=4)


def test_no_set_is_evaluated_twice_and_a_shared_cache_serves_all_methods() -> None:
    calls: list[Keep] = []
    loss = coupled_loss(8, 3)

    def counted(keep: Keep) -> float:
        calls.append(keep)
        return loss(keep)

    cache = CachedEvaluation(one_by_one(counted))
    for method in ("amoeba", "greedy", "single-drop", "random"):
        path = depth_path(method, 8, 3, cache)
        assert path.num_evaluations > 0
    assert len(calls) == len(set(calls)) == cache.num_evaluated == len(cache.losses)
    greedy = depth_path("greedy", 8, 3, cache)
    assert greedy.num_evaluations == num_evaluations("greedy", 7, 5) == 25
    assert len(calls) == cache.num_evaluated


def test_a_search_resumes_from_stored_losses() -> None:
    stored: dict[Keep, float] = {}
    loss = coupled_loss(8, 4)
    first = CachedEvaluation(one_by_one(loss), on_round=stored.update)
    whole = depth_path("amoeba", 8, 3, first)
    half = dict(list(stored.items())[: len(stored) // 2])
    resumed = CachedEvaluation(one_by_one(loss), half)
    assert depth_path("amoeba", 8, 3, resumed) == whole
    assert resumed.num_evaluated == len(stored) - len(half)


def test_losses_that_are_not_finite_are_never_chosen() -> None:
    loss = coupled_loss(6, 5)
    for bad in (math.nan, math.inf, -math.inf):
        broken: Loss = lambda keep, bad=bad: bad if 3 not in keep else loss(keep)  # noqa: E731
        for method in ("amoeba", "greedy", "single-drop", "exhaustive"):
            path = run(method, 6, 2, broken)
            assert all(math.isfinite(value) for value in path.losses.values())
            assert all(3 in blocks for blocks in path.blocks.values())
            assert list(path.blocks) == [6, 5, 4, 3, 2]
        # A fixed ranking that meets the broken block has no finite choice from there on.
        assert list(run("deepest", 6, 2, broken).blocks) == [6, 5]


def test_the_programme_survives_where_only_a_late_cell_is_finite() -> None:
    # Everything that drops block 3 overflows, so the row of the first candidate stays empty.
    loss: Loss = lambda keep: math.nan if 3 not in keep else float(5 - len(keep))  # noqa: E731
    assert run("amoeba", 5, 2, loss).blocks == {
        5: (0, 1, 2, 3, 4),
        4: (0, 1, 3, 4),
        3: (0, 3, 4),
        2: (3, 4),
    }


def test_where_nothing_is_finite_a_sentence_says_so() -> None:
    for method in DEPTH_METHODS:
        with pytest.raises(CheckpointError, match="dense model is not finite"):
            run(method, 4, 2, lambda keep: math.nan)
        with pytest.raises(CheckpointError, match="finite loss"):
            run(method, 4, 2, lambda keep: 1.0 if len(keep) == 4 else math.inf)


def test_keeping_everything_asks_only_for_the_dense_loss() -> None:
    for method in DEPTH_METHODS:
        path = run(method, 4, 4, lambda keep: 2.5)
        assert path == DepthPath(method, (DepthChoice((0, 1, 2, 3), 2.5),), 0)


@pytest.mark.parametrize(
    ("method", "blocks", "least", "first", "last"),
    [
        ("guess", 6, 2, 0, 0),
        ("amoeba", 6, 0, 0, 0),
        ("amoeba", 6, 7, 0, 0),
        ("amoeba", 6, 2, 2, 1),
        ("amoeba", 6, 2, -1, 1),
        ("exhaustive", 40, 10, 0, 1),
    ],
)
def test_impossible_requests_are_refused(
    method: DepthMethod, blocks: int, least: int, first: int, last: int
) -> None:
    with pytest.raises(UsageError):
        run(method, blocks, least, len, protect_first=first, protect_last=last)
