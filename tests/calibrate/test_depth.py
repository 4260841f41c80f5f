"""Losses of depths equal full recomputation, blocks run no more than they must, searches resume."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch

from pliant.calibrate import DepthEvaluator, depth, find_depth_paths, mean_loss
from pliant.models import Supernet
from pliant.shape import (
    CachedEvaluation,
    Keep,
    SubnetShape,
    depth_path,
    losses_from_json,
    losses_to_json,
    num_evaluations,
)

MakeSupernet = Callable[..., Supernet]
Trained = Callable[[str, str, int, int], tuple[Supernet, torch.Tensor]]


def alone(supernet: Supernet, tokens_BT: torch.Tensor, keep: Keep, batch_size: int = 8) -> float:
    shape = SubnetShape.uniform(supernet.spec, keep, 1.0)
    return mean_loss(supernet, tokens_BT, shape, batch_size)


@pytest.mark.parametrize("batch_size", [1, 3, 8])
@pytest.mark.parametrize("cache_bytes", [0, 20_000, 2**30])
def test_shared_work_gives_the_losses_of_each_keep_vector_alone(
    make_supernet: MakeSupernet, tokens_BT: torch.Tensor, batch_size: int, cache_bytes: int
) -> None:
    supernet = make_supernet()
    evaluate = DepthEvaluator(supernet, tokens_BT, batch_size, cache_bytes)
    every = [keep for n in range(1, 7) for keep in itertools.combinations(range(6), n)]
    random = np.random.default_rng(0)
    for _ in range(3):
        keeps = [every[place] for place in random.choice(len(every), 9, replace=False)]
        expected = [alone(supernet, tokens_BT, keep, batch_size) for keep in keeps]
        assert evaluate(keeps) == expected


def test_dropping_a_block_is_the_identity_on_the_residual_stream(
    make_supernet: MakeSupernet, tokens_BT: torch.Tensor
) -> None:
    supernet = make_supernet()
    for block in (0, 3, 5):
        silenced = Supernet(supernet.spec, dict(supernet.weights), supernet.shape)
        for matrix in ("o", "down"):
            name = f"blocks.{block}.{matrix}"
            silenced.weights[name] = torch.zeros_like(silenced.weights[name])
        keep = tuple(kept for kept in range(6) if kept != block)
        assert DepthEvaluator(supernet, tokens_BT)([keep]) == [
            pytest.approx(mean_loss(silenced, tokens_BT), abs=1e-12)
        ]


def test_every_shared_beginning_is_run_once(
    make_supernet: MakeSupernet, tokens_BT: torch.Tensor
) -> None:
    supernet = make_supernet()
    keeps = [(0, 1, 2, 4, 5), (0, 1, 2, 3, 5), (0, 1, 3, 4, 5), (0, 1, 2, 3), (0, 1)]
    beginnings = {keep[:length] for keep in keeps for length in range(1, len(keep) + 1)}
    evaluate = DepthEvaluator(supernet, tokens_BT, batch_size=2, cache_bytes=0)
    evaluate(keeps)
    assert evaluate.num_block_passes == len(beginnings)


def test_in_the_programme_only_suffixes_are_recomputed(
    make_supernet: MakeSupernet, tokens_BT: torch.Tensor
) -> None:
    supernet = make_supernet()
    evaluate = DepthEvaluator(supernet, tokens_BT)
    rounds: list[list[Keep]] = []

    def noted(keeps: list[Keep]) -> list[float]:
        rounds.append(list(keeps))
        return evaluate(keeps)

    depth_path("amoeba", 6, 2, noted)
    assert len(rounds) == 6
    # The dense beginning of each round was run by the dense round before it.
    passes = 6
    for dropped, keeps in enumerate(rounds[1:], start=1):
        first = 5 - dropped
        passes += len(
            {
                k[:n]
                for k in keeps
                for n in range(first + 1, len(k) + 1)
                if k[:first] == keeps[0][:first]
            }
        )
    assert evaluate.num_block_passes == passes
    alone_passes = sum(len(keep) for keeps in rounds for keep in keeps)
    assert evaluate.num_block_passes < 0.7 * alone_passes


def test_states_held_at_once_stay_few(
    make_supernet: MakeSupernet, tokens_BT: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    import weakref

    supernet = make_supernet(num_blocks=7)
    living: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
    most = 0
    run_block = depth.run_block

    def counted(*arguments: Any, **options: Any) -> torch.Tensor:
        nonlocal most
        result = run_block(*arguments, **options)
        living.add(result)
        most = max(most, len(living))
        return result

    monkeypatch.setattr(depth, "run_block", counted)
    every = [keep for n in range(1, 8) for keep in itertools.combinations(range(7), n)]
    DepthEvaluator(supernet, tokens_BT, cache_bytes=0)(every)
    # log2(127) states that wait, and the input and output of the block that runs.
    assert most <= 7 + 2


def test_paths_of_all_methods_share_their_losses_and_report_their_progress(
    make_supernet: MakeSupernet, tokens_BT: torch.Tensor
) -> None:
    supernet = make_supernet()
    stored: list[dict[str, float | None]] = []
    calls: list[tuple[str, int, int]] = []

    def keep_losses(losses: Mapping[Keep, float]) -> None:
        stored.append(losses_to_json(losses))

    methods = ("amoeba", "greedy", "single-drop", "influence", "random", "exhaustive")
    paths = find_depth_paths(
        supernet, tokens_BT, methods, 2, on_round=keep_losses,
        progress=lambda *call: calls.append(call),
    )  # fmt: skip
    assert tuple(paths) == methods
    assert len(stored[-1]) == 1 + sum(
        1 for n in range(2, 6) for _ in itertools.combinations(range(5), n - 1)
    )
    total = sum(1 + num_evaluations(method, 5, 4) for method in methods)
    depth_calls = [call for call in calls if call[0] == "depth"]
    assert depth_calls[0] == ("depth", 0, total)
    assert depth_calls[-1] == ("depth", total, total)
    assert [done for _, done, _ in depth_calls] == sorted(done for _, done, _ in depth_calls)
    for method in methods:
        for keep, loss in zip(
            paths[method].blocks.values(), paths[method].losses.values(), strict=True
        ):
            assert loss == alone(supernet, tokens_BT, keep)
        assert all(regret >= 0 for regret in paths[method].regret(paths["exhaustive"]).values())

    # What the first round handed out is not measured again.
    known = losses_from_json(stored[2])
    resumed: list[Mapping[Keep, float]] = []
    again = find_depth_paths(
        supernet,
        tokens_BT,
        ("amoeba",),
        2,
        known=known,
        on_round=lambda new: resumed.append(dict(new)),
    )
    assert again["amoeba"] == paths["amoeba"]
    assert set(known) < set(resumed[0])


def test_a_cache_that_is_complete_needs_no_model(
    make_supernet: MakeSupernet, tokens_BT: torch.Tensor
) -> None:
    supernet = make_supernet()
    stored: dict[Keep, float] = {}
    first = find_depth_paths(supernet, tokens_BT, ("greedy",), 3, on_round=stored.update)
    supernet.block = None  # type: ignore[method-assign]
    assert find_depth_paths(supernet, tokens_BT, ("greedy",), 3, known=stored) == first


@pytest.mark.parametrize("model", ["stories260K", "tale-6m-draft"])
def test_on_a_trained_model_the_programme_beats_the_deepest_and_the_median_random_set(
    trained: Trained, model: str
) -> None:
    supernet, tokens_BT = trained(model, "children_valid.txt", 6, 64)
    num_blocks = supernet.spec.num_blocks
    evaluate = CachedEvaluation(DepthEvaluator(supernet, tokens_BT))
    least = num_blocks // 2
    best, deepest = (
        depth_path(m, num_blocks, least, evaluate).losses for m in ("amoeba", "deepest")
    )
    chance = [
        depth_path("random", num_blocks, least, evaluate, seed=seed).losses for seed in range(20)
    ]
    for count in range(least, num_blocks):
        assert best[count] <= deepest[count]
        assert best[count] <= np.median([losses[count] for losses in chance])
