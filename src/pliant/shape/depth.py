"""Depth paths: which blocks stay for each number of blocks kept.

The searches are pure. They ask for losses of keep-vectors a round at a time (all keep-vectors of a
round are known before the first is evaluated), so that whoever evaluates can share work between
them. In every method equal losses keep the older choice, which is the one that drops deeper blocks.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import msgspec
import numpy as np

from pliant.errors import CheckpointError, DataError, UsageError

#: Kept blocks, ascending: the name under which a loss is cached.
Keep = tuple[int, ...]
#: Losses (lower is better; nats per token in practice) of a round of keep-vectors.
Evaluate = Callable[[Sequence[Keep]], Sequence[float]]

DepthMethod = Literal[
    "amoeba", "greedy", "single-drop", "influence", "deepest", "random", "exhaustive"
]

#: Names of all depth searches, the default first.
DEPTH_METHODS: tuple[DepthMethod, ...] = get_args(DepthMethod)

#: Exhaustive search is for tiny nets; beyond this many evaluations it is refused.
MAX_EXHAUSTIVE_EVALUATIONS = 100_000


class DepthChoice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The blocks kept at one depth, and the loss measured with them."""

    blocks: Keep
    loss: float


class DepthPath(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one method chose for each number of kept blocks, the dense model first.

    `num_evaluations` counts the distinct keep-vectors the method asked for, the dense model not
    among them: what the path would cost without a cache. A depth for which no finite loss was
    found is absent.
    """

    method: str
    choices: tuple[DepthChoice, ...]
    num_evaluations: int

    @property
    def blocks(self) -> dict[int, Keep]:
        """Kept blocks by their number, falling."""
        return {len(choice.blocks): choice.blocks for choice in self.choices}

    @property
    def losses(self) -> dict[int, float]:
        """Measured loss by number of kept blocks, falling."""
        return {len(choice.blocks): choice.loss for choice in self.choices}

    @property
    def is_nested(self) -> bool:
        """Whether each depth keeps a subset of the deeper one before it: one order serves all."""
        return all(
            set(smaller.blocks) <= set(larger.blocks)
            for larger, smaller in itertools.pairwise(self.choices)
        )

    def regret(self, reference: DepthPath) -> dict[int, float]:
        """How much more loss than `reference` this path has, at each depth that both hold."""
        return {
            depth: loss - reference.losses[depth]
            for depth, loss in self.losses.items()
            if depth in reference.losses
        }


class CachedEvaluation:
    """An `Evaluate` that asks for each keep-vector once and turns non-finite losses into infinity.

    `known` are losses measured earlier (of the same model on the same tokens; the caller sees to
    that). `on_round` receives everything known after each round that measured something new, so
    that it can be stored and a stopped search resumed.
    """

    def __init__(
        self,
        evaluate: Evaluate,
        known: Mapping[Keep, float] | None = None,
        on_round: Callable[[Mapping[Keep, float]], None] | None = None,
    ) -> None:
        self._evaluate = evaluate
        self._on_round = on_round
        self.losses: dict[Keep, float] = dict(known or {})
        self.num_evaluated = 0
        self.requested: set[Keep] = set()

    def __call__(self, keeps: Sequence[Keep]) -> list[float]:
        """Losses of `keeps`; infinity where the loss is not finite, which no search then takes."""
        new = list(dict.fromkeys(keep for keep in keeps if keep not in self.losses))
        if new:
            self.losses.update(zip(new, self._evaluate(new), strict=True))
            self.num_evaluated += len(new)
            if self._on_round is not None:
                self._on_round(self.losses)
        self.requested.update(keeps)
        return [
            self.losses[keep] if math.isfinite(self.losses[keep]) else math.inf for keep in keeps
        ]


def one_by_one(loss: Callable[[Keep], float]) -> Evaluate:
    """An `Evaluate` from a function of one keep-vector."""
    return lambda keeps: [loss(keep) for keep in keeps]


def losses_to_json(losses: Mapping[Keep, float]) -> dict[str, float | None]:
    """Losses as JSON can hold them: keep-vectors as `0,1,3`, what is not finite as null."""
    return {
        ",".join(map(str, keep)): loss if math.isfinite(loss) else None
        for keep, loss in losses.items()
    }


def losses_from_json(stored: Mapping[str, float | None]) -> dict[Keep, float]:
    """The losses that `losses_to_json` wrote; `DataError` where these are not."""
    try:
        return {
            tuple(map(int, keep.split(","))): math.inf if loss is None else float(loss)
            for keep, loss in stored.items()
        }
    except (TypeError, ValueError) as error:
        raise DataError(
            f"Stored losses of depths are damaged ({error}); delete them to measure again."
        ) from error


@dataclass(frozen=True)
class _Search:
    """One search: candidates from deep to shallow, at most `removals` of which are dropped."""

    dense: DepthChoice
    candidates: Keep
    removals: int
    evaluate: Evaluate
    influence: Sequence[float] | None
    seed: int


def depth_path(
    method: DepthMethod,
    num_blocks: int,
    min_blocks: int,
    evaluate: Evaluate,
    *,
    protect_first: int = 0,
    protect_last: int = 1,
    influence: Sequence[float] | None = None,
    seed: int = 0,
) -> DepthPath:
    """Choose the blocks to keep for every depth from `num_blocks` down to `min_blocks`.

    - `amoeba`: AmoebaLLM's dynamic programme (arXiv 2411.10606), see `programme_rows`.
    - `greedy`: drop the block whose loss costs least, again and again; nested.
    - `single-drop`: rank blocks once by the loss without each (Shortened LLaMA, arXiv 2402.02834).
    - `influence`: rank by `influence[block]`, ShortGPT's 1 - cos of a block's input and output
      (arXiv 2403.03853).
    - `deepest`, `random`: the baselines; `exhaustive`: all sets, for tiny nets.

    The first `protect_first` and last `protect_last` blocks always stay. Raises `UsageError` for
    an impossible request and `CheckpointError` where no loss is finite.
    """
    num_candidates, removals = _check(method, num_blocks, min_blocks, protect_first, protect_last)
    _check_influence(method, num_blocks, influence)
    cached = CachedEvaluation(evaluate)
    dense = _dense_choice(num_blocks, cached)
    candidates = dense.blocks[protect_first : protect_first + num_candidates][::-1]
    search = _Search(dense, candidates, removals, cached, influence, seed)
    choices = [dense, *_METHODS[method](search)]
    if removals and len(choices) == 1:
        raise CheckpointError(
            f"No set of blocks that {method} tried has a finite loss; "
            "the activations overflow as soon as a block is dropped."
        )
    return DepthPath(method, tuple(choices), len(cached.requested) - 1)


def num_evaluations(method: DepthMethod, num_candidates: int, removals: int) -> int:
    """Keep-vectors a method asks for, the dense model not counted; all losses taken as finite."""
    match method:
        case "amoeba":
            return sum(min(step, removals) for step in range(1, num_candidates + 1))
        case "greedy":
            return sum(num_candidates - step for step in range(removals))
        case "single-drop":
            return num_candidates + removals - 1 if removals else 0
        case "exhaustive":
            return sum(math.comb(num_candidates, count) for count in range(1, removals + 1))
        case _:
            return removals


def programme_rows(
    dense: DepthChoice, candidates: Sequence[int], removals: int, evaluate: Evaluate
) -> Iterator[list[DepthChoice | None]]:
    """AmoebaLLM's dynamic programme over depth (arXiv 2411.10606), one row after another.

    Candidates come from deep to shallow. Row `n` holds, for `m` from 0 to `removals`, the best
    choice found that drops exactly `m` of the first `n` candidates: either the choice of row
    `n - 1`, or row `n - 1`'s choice for `m - 1` with candidate `n` dropped too, if its measured
    loss is strictly lower. None where nothing finite was found.

    The loss is not additive over blocks, so this is a beam of width one per `(n, m)` rather than
    an exact solver. What does hold: `m = 1` is the best single removal; losses never rise with
    `n`; each loss is the measured loss of its blocks; `m` blocks are dropped; and entry
    `(m, m)` drops the `m` deepest candidates, so the last row is never worse than that.
    """
    row: list[DepthChoice | None] = [dense, *[None] * removals]
    yield row
    for step, candidate in enumerate(candidates, start=1):
        tried: dict[int, Keep] = {}
        for dropped in range(1, min(step, removals) + 1):
            shorter = row[dropped - 1]
            if shorter is not None:
                tried[dropped] = _without(shorter.blocks, candidate)
        losses = evaluate(list(tried.values()))
        following = list(row)
        for (dropped, blocks), loss in zip(tried.items(), losses, strict=True):
            older = row[dropped]
            if loss < (math.inf if older is None else older.loss):
                following[dropped] = DepthChoice(blocks, loss)
        row = following
        yield row


def _check(
    method: DepthMethod, num_blocks: int, min_blocks: int, protect_first: int, protect_last: int
) -> tuple[int, int]:
    """Number of candidates and of removals, or `UsageError`."""
    if method not in _METHODS:
        raise UsageError(
            f"There is no depth method {method!r}; choose one of {', '.join(DEPTH_METHODS)}."
        )
    if min(protect_first, protect_last) < 0 or not 1 <= min_blocks <= num_blocks:
        raise UsageError(
            f"Between 1 and {num_blocks} blocks can be kept, and 0 or more protected; asked for "
            f"{min_blocks} kept, {protect_first} first and {protect_last} last ones protected."
        )
    num_candidates = max(num_blocks - protect_first - protect_last, 0)
    removals = num_blocks - min_blocks
    if removals > num_candidates:
        raise UsageError(
            f"Keeping {min_blocks} of {num_blocks} blocks drops {removals}, but only "
            f"{num_candidates} are unprotected; keep at least {num_blocks - num_candidates}."
        )
    if method == "exhaustive":
        count = num_evaluations(method, num_candidates, removals)
        if count > MAX_EXHAUSTIVE_EVALUATIONS:
            raise UsageError(
                f"An exhaustive search would evaluate {count} sets of blocks, more than "
                f"{MAX_EXHAUSTIVE_EVALUATIONS}; use amoeba or greedy."
            )
    return num_candidates, removals


def _check_influence(
    method: DepthMethod, num_blocks: int, influence: Sequence[float] | None
) -> None:
    if method == "influence" and (influence is None or len(influence) != num_blocks):
        found = 0 if influence is None else len(influence)
        raise UsageError(
            f"The influence method needs a score for each of {num_blocks} blocks; {found} given."
        )


def _dense_choice(num_blocks: int, evaluate: Evaluate) -> DepthChoice:
    everything = tuple(range(num_blocks))
    (loss,) = evaluate([everything])
    if not math.isfinite(loss):
        raise CheckpointError(
            "The loss of the dense model is not finite, so no depth can be compared with it; "
            "the checkpoint is damaged or overflows at this precision."
        )
    return DepthChoice(everything, loss)


def _without(blocks: Keep, block: int) -> Keep:
    return tuple(kept for kept in blocks if kept != block)


def _best(keeps: Sequence[Keep], losses: Sequence[float]) -> DepthChoice | None:
    """The first of the lowest finite losses, or None."""
    best = min(range(len(keeps)), key=losses.__getitem__)
    return DepthChoice(keeps[best], losses[best]) if math.isfinite(losses[best]) else None


def _amoeba(search: _Search) -> list[DepthChoice]:
    rows = programme_rows(search.dense, search.candidates, search.removals, search.evaluate)
    *_, last = rows
    return [choice for choice in last[1:] if choice is not None]


def _greedy(search: _Search) -> list[DepthChoice]:
    choices = [search.dense]
    for _ in range(search.removals):
        kept = choices[-1].blocks
        keeps = [_without(kept, block) for block in search.candidates if block in kept]
        best = _best(keeps, search.evaluate(keeps))
        if best is None:
            break
        choices.append(best)
    return choices[1:]


def _ranked(search: _Search, order: Sequence[int]) -> list[DepthChoice]:
    """Drop blocks in a fixed order."""
    keeps = list(
        itertools.accumulate(order[: search.removals], _without, initial=search.dense.blocks)
    )
    losses = search.evaluate(keeps[1:])
    return [
        DepthChoice(keep, loss)
        for keep, loss in zip(keeps[1:], losses, strict=True)
        if math.isfinite(loss)
    ]


def _single_drop(search: _Search) -> list[DepthChoice]:
    if not search.removals:
        return []
    losses = search.evaluate([_without(search.dense.blocks, block) for block in search.candidates])
    ranking = np.argsort(losses, kind="stable")
    return _ranked(search, [search.candidates[place] for place in ranking])


def _influence(search: _Search) -> list[DepthChoice]:
    assert search.influence is not None
    ranking = np.argsort([search.influence[block] for block in search.candidates], kind="stable")
    return _ranked(search, [search.candidates[place] for place in ranking])


def _deepest(search: _Search) -> list[DepthChoice]:
    return _ranked(search, search.candidates)


def _random(search: _Search) -> list[DepthChoice]:
    ranking = np.random.default_rng(search.seed).permutation(len(search.candidates))
    return _ranked(search, [search.candidates[place] for place in ranking])


def _exhaustive(search: _Search) -> list[DepthChoice]:
    choices = []
    for count in range(1, search.removals + 1):
        keeps = [
            tuple(block for block in search.dense.blocks if block not in dropped)
            for dropped in itertools.combinations(search.candidates, count)
        ]
        best = _best(keeps, search.evaluate(keeps))
        choices += [] if best is None else [best]
    return choices


_METHODS: dict[DepthMethod, Callable[[_Search], list[DepthChoice]]] = {
    "amoeba": _amoeba,
    "greedy": _greedy,
    "single-drop": _single_drop,
    "influence": _influence,
    "deepest": _deepest,
    "random": _random,
    "exhaustive": _exhaustive,
}
