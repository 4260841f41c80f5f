"""`score_continuations`: how likely a model finds texts after their contexts, many at a time.

Requests are sorted by their tokens and dealt out to lanes in stretches. Neighbours in a lane share
the longest beginnings that any two requests share, and a lane's cache keeps it: the context of a
question with four answers, or of few-shot examples, is computed once. The lanes run together in one
forward call.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from pliant.errors import DataError, UsageError, VerificationError
from pliant.evaluate.text_loss import token_nats
from pliant.measurement import Progress, silent
from pliant.runtime import Chunk, TokenModel

#: Tokens of one lane per forward call.
_LANE_TOKENS = 128


class Continuation(msgspec.Struct, frozen=True):
    """Tokens whose likelihood is wanted, and those before them; both at least one."""

    context: tuple[int, ...]
    tokens: tuple[int, ...]


class ContinuationScore(msgspec.Struct, frozen=True):
    """ln p of all tokens of a continuation, and whether greedy decoding would write them."""

    log_likelihood: float
    is_greedy: bool


def score_continuations(
    model: TokenModel,
    requests: Sequence[Continuation],
    *,
    lanes: int = 8,
    max_length: int | None = None,
    progress: Progress = silent,
) -> list[ContinuationScore]:
    """One score per request, in their order.

    `lanes` sequences run at a time; `max_length` tokens are fed at most (None: the model's
    context), from the end: a longer context loses its beginning. `DataError` for a request without
    context or tokens or with more tokens than that, `UsageError` for options that cannot be,
    `VerificationError` where a logit is no number.
    """
    longest = model.max_context if max_length is None else max_length
    if not 1 <= longest <= model.max_context or lanes < 1:
        raise UsageError(
            f"{lanes} lanes of {longest} tokens were asked for; use at least one lane and 1 to "
            f"{model.max_context} tokens."
        )
    items = [_Item(place, request, longest) for place, request in enumerate(requests)]
    items.sort(key=lambda item: item.inputs.tolist())
    size = -(-len(items) // lanes) if items else 1
    running = [_Lane(model, items[begin : begin + size]) for begin in range(0, len(items), size)]
    done = 0
    while running:
        chunks = [lane.next_chunk() for lane in running]
        for lane, logits in zip(running, model.forward_chunk(chunks), strict=True):
            done += lane.accept(logits)
        progress("scoring", done, len(items))
        running = [lane for lane in running if lane.items]
    items.sort(key=lambda item: item.place)
    return [ContinuationScore(-item.nats, item.is_greedy) for item in items]


class _Item:
    """One request: what is fed, what should follow, and what was found so far."""

    def __init__(self, place: int, request: Continuation, longest: int) -> None:
        if not request.context or not 1 <= len(request.tokens) <= longest:
            raise DataError(
                f"Request {place} has {len(request.context)} tokens of context and "
                f"{len(request.tokens)} to score; give at least one of each, and at most {longest} "
                "to score."
            )
        whole = np.asarray((*request.context, *request.tokens), np.int32)[-(longest + 1) :]
        self.place = place
        self.inputs: NDArray[np.int32] = whole[:-1]
        self.targets: NDArray[np.int32] = whole[1:]
        self.first_scored = len(self.inputs) - len(request.tokens)
        self.nats = 0.0
        self.is_greedy = True


class _Lane:
    """Requests that one cache serves, one after another."""

    def __init__(self, model: TokenModel, items: list[_Item]) -> None:
        self.items = list(items)
        self._cache = model.new_cache(max(len(item.inputs) for item in items))
        self._held = np.zeros(0, np.int32)
        self._begin()

    def _begin(self) -> None:
        """Keep what the next request shares with the last, up to where it is scored."""
        item = self.items[0]
        most = min(len(self._held), item.first_scored)
        different = np.flatnonzero(self._held[:most] != item.inputs[:most])
        self._at = int(different[0]) if different.size else most
        # A cache of few bits that is cut too deep would be near to a fresh text, not equal to it.
        if self._at < getattr(self._cache, "exact_from", 0):
            self._at = 0
        self._cache.truncate(self._at)

    def next_chunk(self) -> Chunk:
        """Context without logits, or tokens to score with all of theirs."""
        item = self.items[0]
        scored = self._at >= item.first_scored
        end = len(item.inputs) if scored else item.first_scored
        self._part = slice(self._at, min(end, self._at + _LANE_TOKENS))
        return Chunk(item.inputs[self._part], self._cache, logits="all" if scored else "none")

    def accept(self, logits: NDArray[np.float32]) -> int:
        """Take the logits of the last chunk; 1 where it ended a request, else 0."""
        item = self.items[0]
        if len(logits):
            targets = item.targets[self._part]
            losses = token_nats(logits, targets)
            if not np.isfinite(losses).all():
                raise VerificationError(
                    "The model gave a logit that is no number; its weights or its cut are "
                    "damaged. Run `pliant verify` on the artifact."
                )
            item.nats += float(losses.sum())
            item.is_greedy &= bool((logits.argmax(axis=1) == targets).all())
        self._at = self._part.stop
        if self._at < len(item.inputs):
            return 0
        self._held = item.inputs
        self.items.pop(0)
        if self.items:
            self._begin()
        return 1
