"""Depth paths of a model: held-out loss of keep-vectors, sharing the work between them.

Shape suffixes: B sequences, T tokens, D hidden size.
"""

from __future__ import annotations

import math
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch

from pliant.calibrate.loss import (
    BATCH_SIZE,
    calibration_tokens,
    embed,
    final_loss,
    mean_loss,
    run_block,
)
from pliant.calibrate.statistics import stream_statistics
from pliant.errors import UsageError
from pliant.measurement import Progress, silent
from pliant.models import Supernet
from pliant.shape import (
    CachedEvaluation,
    DepthChoice,
    DepthMethod,
    DepthPath,
    Keep,
    SubnetShape,
    depth_path,
    num_evaluations,
    shape_of_halves,
)

#: Default memory for hidden states kept from one round of a search to the next.
CACHE_BYTES = 256 * 2**20


class DepthEvaluator:
    """Mean held-out loss (nats per token) of keep-vectors at full width; an `Evaluate`.

    The keep-vectors of a round form a tree of shared beginnings, which is walked once: every block
    runs once for each distinct beginning, and of K keep-vectors at most 1 + log2 K hidden states
    `[B, T, D]` wait at a time. States on the way that a whole round shares (for AmoebaLLM's
    programme the dense blocks before the candidate) are kept for later rounds, the latest first,
    within `cache_bytes`. Losses are bit for bit those of running each keep-vector alone.

    With `halves` the keep-vectors are of halves of blocks, as `pliant.shape.finer` numbers them.
    `num_block_passes` counts the blocks or halves run so far, each over all sequences.
    """

    def __init__(
        self,
        supernet: Supernet,
        tokens_BT: torch.Tensor,
        batch_size: int = BATCH_SIZE,
        cache_bytes: int = CACHE_BYTES,
        halves: bool = False,
    ) -> None:
        self.num_block_passes = 0
        self._halves = halves
        self._supernet = supernet
        self._tokens_BT = calibration_tokens(supernet, tokens_BT)
        self._batch_size = batch_size
        self._cache = _PrefixCache(cache_bytes)

    def __call__(self, keeps: Sequence[Keep]) -> list[float]:
        """Losses of the keep-vectors of a round: the beginning that all share, then the tree."""
        if self._supernet.adapters is not None:
            # Every block depends on the whole shape, so that no beginning can be shared.
            return [self._alone(keep) for keep in keeps]
        shared = _common_beginning(keeps)
        length, hidden_BTD = self._cache.longest(shared)
        if hidden_BTD is None:
            hidden_BTD = embed(self._supernet, self._tokens_BT, self._batch_size)
        for place in range(length, len(shared)):
            hidden_BTD = self._run(shared[place], hidden_BTD)
            self._cache.store(shared[: place + 1], hidden_BTD)
        losses: dict[Keep, float] = {}
        self._walk(hidden_BTD, len(shared), list(dict.fromkeys(keeps)), losses)
        return [losses[keep] for keep in keeps]

    def _walk(
        self,
        hidden_BTD: torch.Tensor,
        length: int,
        keeps: Sequence[Keep],
        losses: dict[Keep, float],
    ) -> None:
        """Losses of `keeps`, which share their first `length` blocks and the state after them."""
        while True:
            branches: dict[int, list[Keep]] = defaultdict(list)
            for keep in keeps:
                if len(keep) == length:
                    losses[keep] = final_loss(self._supernet, hidden_BTD, self._tokens_BT)
                else:
                    branches[keep[length]].append(keep)
            if not branches:
                return
            # The state is held while smaller branches run and given up for the largest one, so
            # of states held at once each serves at most half the keep-vectors of the one before.
            *smaller, (largest, keeps) = sorted(branches.items(), key=_branch_size)
            for block, branch in smaller:
                self._walk(self._run(block, hidden_BTD), length + 1, branch, losses)
            hidden_BTD = self._run(largest, hidden_BTD)
            length += 1

    def _alone(self, keep: Keep) -> float:
        self.num_block_passes += len(keep)
        spec = self._supernet.spec
        if self._halves:
            shape = shape_of_halves(spec, keep)
        else:
            shape = SubnetShape.uniform(spec, keep, 1.0)
        return mean_loss(self._supernet, self._tokens_BT, shape, self._batch_size)

    def _run(self, unit: int, hidden_BTD: torch.Tensor) -> torch.Tensor:
        self.num_block_passes += 1
        if not self._halves:
            return run_block(self._supernet, unit, hidden_BTD, self._batch_size)
        spec = self._supernet.spec
        widths = (0, spec.ffn_size) if unit % 2 else (spec.num_groups, 0)
        return run_block(self._supernet, unit // 2, hidden_BTD, self._batch_size, widths)


def find_depth_paths(
    supernet: Supernet,
    tokens_BT: torch.Tensor,
    methods: Sequence[DepthMethod],
    min_blocks: int,
    *,
    protect_first: int = 0,
    protect_last: int = 1,
    influence: Sequence[float] | None = None,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    cache_bytes: int = CACHE_BYTES,
    known: Mapping[Keep, float] | None = None,
    on_round: Callable[[Mapping[Keep, float]], None] | None = None,
    progress: Progress = silent,
) -> dict[str, DepthPath]:
    """The path of each method, by name, on held-out windows `[B, T]`; see `depth_path`.

    All methods share one cache of losses. `known` are losses of an earlier run on the same model
    and tokens, and `on_round` receives all losses after each round of new ones: a search that is
    stopped and given what it handed out goes on where it was (`losses_to_json` makes JSON of it).
    `influence` is measured on the same tokens where a method needs it and none is given.
    """
    cached = CachedEvaluation(
        DepthEvaluator(supernet, tokens_BT, batch_size, cache_bytes), known, on_round
    )
    if "influence" in methods and influence is None:
        seen = stream_statistics(supernet, tokens_BT, batch_size, progress)
        influence = [block.influence for block in seen]
    num_blocks = supernet.spec.num_blocks
    candidates = max(num_blocks - protect_first - protect_last, 0)
    removals = max(num_blocks - min_blocks, 0)
    total = sum(1 + num_evaluations(method, candidates, removals) for method in methods)
    search = partial(
        depth_path, num_blocks=num_blocks, min_blocks=min_blocks,
        evaluate=_Reported(cached, progress, total),
        protect_first=protect_first, protect_last=protect_last, influence=influence, seed=seed,
    )  # fmt: skip
    paths: dict[str, DepthPath] = {method: search(method) for method in methods}
    progress("depth", total, total)
    return paths


def find_half_path(
    supernet: Supernet,
    tokens_BT: torch.Tensor,
    method: DepthMethod,
    min_blocks: int,
    *,
    protect_first: int = 0,
    protect_last: int = 1,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    cache_bytes: int = CACHE_BYTES,
    progress: Progress = silent,
) -> DepthPath:
    """The path over halves of blocks that one method chooses, down to 2 x `min_blocks` of them.

    Its choices name halves, 2 b for the attention of block b and 2 b + 1 for its MLP; both halves
    of the first `protect_first` and last `protect_last` blocks always stay. Methods are those of
    `depth_path` but influence, which is one of whole blocks (`UsageError`).
    """
    if method == "influence":
        raise UsageError("Influence is one of whole blocks; search halves by another method.")
    evaluator = DepthEvaluator(supernet, tokens_BT, batch_size, cache_bytes, halves=True)
    num_halves = 2 * supernet.spec.num_blocks
    candidates = max(num_halves - 2 * (protect_first + protect_last), 0)
    removals = max(num_halves - 2 * min_blocks, 0)
    total = 1 + num_evaluations(method, candidates, removals)
    evaluate = _Reported(CachedEvaluation(evaluator), progress, total)
    path = depth_path(
        method, num_halves, 2 * min_blocks, evaluate,
        protect_first=2 * protect_first, protect_last=2 * protect_last, seed=seed,
    )  # fmt: skip
    progress("depth", total, total)
    return path


def remeasured_paths(
    supernet: Supernet,
    tokens_BT: torch.Tensor,
    paths: Mapping[str, DepthPath],
    batch_size: int = BATCH_SIZE,
    halves: bool = False,
) -> dict[str, DepthPath]:
    """The same choices of blocks with the losses that this model has, a tuned one for example.

    With `halves` they are choices of halves. Depths whose loss is not finite are left out, as a
    search would leave them out.
    """
    evaluate = CachedEvaluation(DepthEvaluator(supernet, tokens_BT, batch_size, halves=halves))
    keeps = [choice.blocks for path in paths.values() for choice in path.choices]
    losses = dict(zip(keeps, evaluate(keeps), strict=True))
    return {
        method: DepthPath(
            method,
            tuple(
                DepthChoice(choice.blocks, losses[choice.blocks])
                for choice in path.choices
                if math.isfinite(losses[choice.blocks])
            ),
            path.num_evaluations,
        )
        for method, path in paths.items()
    }


class _Reported:
    """An `Evaluate` that reports how many of the keep-vectors of all methods are done."""

    def __init__(self, evaluate: CachedEvaluation, progress: Progress, total: int) -> None:
        self._evaluate = evaluate
        self._progress = progress
        self._done = 0
        self._total = total

    def __call__(self, keeps: Sequence[Keep]) -> list[float]:
        self._progress("depth", self._done, self._total)
        losses = self._evaluate(keeps)
        self._done += len(keeps)
        return losses


class _PrefixCache:
    """Hidden states after runs of first blocks, the least recently used forgotten first."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._states: OrderedDict[Keep, torch.Tensor] = OrderedDict()

    def longest(self, blocks: Keep) -> tuple[int, torch.Tensor | None]:
        """The state after the longest known beginning of `blocks`, and its length."""
        for length in range(len(blocks), 0, -1):
            if blocks[:length] in self._states:
                self._states.move_to_end(blocks[:length])
                return length, self._states[blocks[:length]]
        return 0, None

    def store(self, blocks: Keep, hidden_BTD: torch.Tensor) -> None:
        """Remember a state, which nobody may overwrite, if it fits at all."""
        if hidden_BTD.nbytes > self._max_bytes or blocks in self._states:
            return
        self._states[blocks] = hidden_BTD
        self._num_bytes += hidden_BTD.nbytes
        while self._num_bytes > self._max_bytes:
            _, forgotten = self._states.popitem(last=False)
            self._num_bytes -= forgotten.nbytes


def _common_beginning(keeps: Sequence[Keep]) -> Keep:
    """The longest run of first blocks that all keep-vectors share."""
    first, last = min(keeps), max(keeps)
    for place, (one, other) in enumerate(zip(first, last, strict=False)):
        if one != other:
            return first[:place]
    return min(first, last, key=len)


def _branch_size(branch: tuple[int, list[Keep]]) -> int:
    return len(branch[1])
