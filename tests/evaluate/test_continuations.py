"""Scores of continuations: those of one request at a time, whatever is shared or batched."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pliant.errors import DataError, UsageError, VerificationError
from pliant.evaluate.continuations import Continuation, score_continuations
from pliant.evaluate.windows import log_probabilities
from pliant.runtime import Chunk

VOCABULARY = 13


class _Cache:
    """Tokens that a model was fed."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.tokens = capacity, list[int]()

    def truncate(self, length: int) -> None:
        assert length <= len(self.tokens)
        del self.tokens[length:]


class _Model:
    """Logits are a seeded function of all tokens before; counts what it is fed."""

    vocab_size, max_context = VOCABULARY, 40

    def __init__(self, broken: bool = False) -> None:
        self.fed, self.calls, self.broken = 0, 0, broken

    def new_cache(self, capacity: int, max_bytes: int | None = None) -> Any:
        assert capacity <= self.max_context
        return _Cache(capacity)

    def logits(self, tokens: list[int]) -> Any:
        return np.random.default_rng(tokens).normal(0, 3, VOCABULARY).astype(np.float32)

    def forward_chunk(self, chunks: Any) -> Any:
        self.calls += 1
        return [self._one(chunk) for chunk in chunks]

    def _one(self, chunk: Chunk) -> Any:
        rows = []
        for token in chunk.tokens.tolist():
            self.fed += 1
            chunk.cache.tokens.append(token)
            rows.append(self.logits(chunk.cache.tokens))
        assert len(chunk.cache.tokens) <= chunk.cache.capacity
        if chunk.logits == "none":
            return np.zeros((0, VOCABULARY), np.float32)
        assert chunk.logits == "all"
        return np.full_like(rows, np.nan) if self.broken else np.stack(rows)


def naive(model: _Model, request: Continuation, longest: int) -> tuple[float, bool]:
    whole = [*request.context, *request.tokens][-(longest + 1) :]
    total, greedy = 0.0, True
    for place in range(len(whole) - len(request.tokens), len(whole)):
        logits = model.logits(whole[:place])
        total += float(log_probabilities(logits[None])[0, whole[place]])
        greedy &= int(logits.argmax()) == whole[place]
    return total, greedy


def requests() -> list[Continuation]:
    draw = np.random.default_rng(0)
    found = []
    for _ in range(6):
        context = tuple(draw.integers(0, VOCABULARY, int(draw.integers(1, 30))).tolist())
        for _ in range(4):
            tokens = tuple(draw.integers(0, VOCABULARY, int(draw.integers(1, 6))).tolist())
            found.append(Continuation(context, tokens))
    found += found[:2]
    likely = int(_Model().logits([3, 4]).argmax())
    return [*found, Continuation((3, 4), (likely,)), Continuation((3, 4, likely), (likely,))]


@pytest.mark.parametrize("lanes", [1, 3, 64])
@pytest.mark.parametrize("longest", [None, 12])
def test_scores_are_those_of_one_at_a_time(lanes: int, longest: int | None) -> None:
    wanted = requests()
    seen: list[int] = []
    scores = score_continuations(
        _Model(), wanted, lanes=lanes, max_length=longest,
        progress=lambda _, done, total: seen.append(done),
    )  # fmt: skip
    for request, score in zip(wanted, scores, strict=True):
        total, greedy = naive(_Model(), request, longest or 40)
        assert score.log_likelihood == pytest.approx(total, abs=1e-9)
        assert score.is_greedy == greedy
    assert any(score.is_greedy for score in scores) and seen[-1] == len(wanted)


def test_what_requests_share_is_computed_once() -> None:
    context = tuple(range(12)) * 2
    wanted = [Continuation(context, (token, 1)) for token in range(8)]
    model = _Model()
    score_continuations(model, wanted, lanes=1)
    assert model.fed == len(context) - 1 + 8 * 2
    model = _Model()
    score_continuations(model, wanted, lanes=8)
    assert model.calls <= 2


def test_nothing_asked_is_nothing_computed() -> None:
    model = _Model()
    assert score_continuations(model, []) == [] and model.calls == 0


@pytest.mark.parametrize(
    ("request_", "words"),
    [(Continuation((), (1,)), "0 tokens of context"), (Continuation((1,), ()), "0 to score"),
     (Continuation((1,), (1,) * 41), "at most 40")],
)  # fmt: skip
def test_requests_that_cannot_be(request_: Continuation, words: str) -> None:
    with pytest.raises(DataError, match=words):
        score_continuations(_Model(), [request_])


def test_options_and_logits_that_cannot_be() -> None:
    with pytest.raises(UsageError, match="at least one lane"):
        score_continuations(_Model(), requests(), lanes=0)
    with pytest.raises(UsageError, match="1 to 40"):
        score_continuations(_Model(), requests(), max_length=41)
    with pytest.raises(VerificationError, match="no number"):
        score_continuations(_Model(broken=True), requests())
