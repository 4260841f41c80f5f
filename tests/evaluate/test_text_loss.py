"""Every byte counts once, windows do what they say, and the figures are the textbook's."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pliant.errors import DataError, UsageError, VerificationError
from pliant.evaluate import evaluate_text, token_nats
from pliant.evaluate.windows import windows
from pliant.runtime import Tokenizer

TEXT = "A fox, a café, 中文 and 😀: the end of the story came too early.\n" * 3


def nats_by_hand(model: Any, tokens: list[int], size: int, stride: int) -> float:
    """The definition in words: context from the window's start, one token after another."""
    total = 0.0
    for place, token in enumerate(tokens):
        # The first window scores `size` tokens, every other one the next `stride`.
        number = 0 if place < size else (place - size) // stride + 1
        before = tokens[number * stride : place]
        logits = model.logits_after([256, *before])
        total += math.log(np.exp(logits - logits[token]).sum())
    return total


@pytest.mark.parametrize(
    ("window", "stride"), [(64, 64), (64, 1), (10, 10), (10, 3), (1, 1), (63, 62), (None, None)]
)
def test_loss_is_that_of_the_definition(
    model: Any, tokenizer: Tokenizer, window: int | None, stride: int | None
) -> None:
    tokens = tokenizer.encode(TEXT)
    found = evaluate_text(model, tokenizer, TEXT, window, stride)
    size = window or 64
    assert (found.window, found.stride) == (size, stride or size)
    assert found.tokens == len(tokens)
    assert found.num_bytes == len(TEXT.encode())
    expected = nats_by_hand(model, tokens, size, stride or size)
    # Sums of fp64 terms in another order, about a hundred of them.
    assert found.nats == pytest.approx(expected, rel=1e-12)


def test_figures_of_a_model_that_knows_nothing(model: Any, tokenizer: Tokenizer) -> None:
    model._bigram[:] = 0
    model._past[:] = 0
    found = evaluate_text(model, tokenizer, TEXT)
    # A token for each byte and 257 equal choices.
    assert found.nats_per_token == pytest.approx(math.log(257))
    assert found.perplexity == pytest.approx(257)
    assert found.bits_per_byte == pytest.approx(math.log2(257))


@pytest.mark.parametrize("length", [1, 2, 9, 10, 11, 20, 21, 57])
@pytest.mark.parametrize(("size", "stride"), [(10, 10), (10, 1), (10, 7), (1, 1), (100, 3)])
def test_windows_score_every_token_once(length: int, size: int, stride: int) -> None:
    tokens, scored = list(range(length)), []
    for window in windows(tokens, 999, size, stride):
        assert len(window.inputs) == len(window.targets) <= size
        assert window.inputs[0] == 999
        assert (window.inputs[1:] == window.targets[:-1]).all()
        scored += window.targets[window.first_scored :].tolist()
    assert scored == tokens


def test_documents_are_read_by_themselves(model: Any, tokenizer: Tokenizer) -> None:
    documents = ["One.", "", "Twö, three.", TEXT]
    together = evaluate_text(model, tokenizer, documents, 16)
    alone = [evaluate_text(model, tokenizer, document, 16) for document in documents if document]
    assert together.nats == pytest.approx(sum(one.nats for one in alone), rel=1e-12)
    assert together.num_bytes == sum(one.num_bytes for one in alone)


def test_memory_does_not_grow_with_the_window(
    make_model: Callable[..., Any], tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pliant.evaluate.windows._LOGITS_BYTES", 4 * 257 * 5)
    model = make_model(max_context=64)
    parts = evaluate_text(model, tokenizer, TEXT, 64, 20)
    assert max(model.rows) == 5
    assert parts.nats == pytest.approx(nats_by_hand(model, tokenizer.encode(TEXT), 64, 20))


def test_progress_ends_at_the_last_token(model: Any, tokenizer: Tokenizer) -> None:
    calls: list[tuple[str, int, int]] = []
    evaluate_text(model, tokenizer, [TEXT, "more"], 16, progress=lambda *call: calls.append(call))
    total = len(tokenizer.encode(TEXT)) + 4
    assert calls[-1] == ("evaluating", total, total)
    assert [done for _, done, _ in calls] == sorted(done for _, done, _ in calls)


def test_the_default_window_is_bounded(
    make_model: Callable[..., Any], tokenizer: Tokenizer
) -> None:
    assert evaluate_text(make_model(max_context=100_000), tokenizer, "short").window == 2048


class TestBadInput:
    @pytest.mark.parametrize("text", ["", [], ["", ""]])
    def test_empty_text(self, model: Any, tokenizer: Tokenizer, text: Any) -> None:
        with pytest.raises(DataError, match="empty"):
            evaluate_text(model, tokenizer, text)

    @pytest.mark.parametrize(("window", "stride"), [(65, None), (0, None), (10, 11), (10, 0)])
    def test_windows_that_cannot_be(
        self, model: Any, tokenizer: Tokenizer, window: int, stride: int | None
    ) -> None:
        with pytest.raises(UsageError, match="was asked for"):
            evaluate_text(model, tokenizer, TEXT, window, stride)

    def test_no_start_token(self, model: Any, tokenizer: Tokenizer) -> None:
        with pytest.raises(DataError, match="bos_token"):
            evaluate_text(model, Tokenizer(tokenizer._backend), TEXT)

    def test_text_that_was_not_utf8(self, model: Any, tokenizer: Tokenizer) -> None:
        with pytest.raises(DataError, match="UTF-8"):
            evaluate_text(model, tokenizer, b"\xff".decode("utf-8", "surrogateescape"))

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_a_damaged_model(self, model: Any, tokenizer: Tokenizer, bad: float) -> None:
        model._bigram[:, 5] = bad
        with pytest.raises(VerificationError, match="pliant verify"):
            evaluate_text(model, tokenizer, TEXT)


def test_token_nats_hold_for_extreme_logits() -> None:
    logits = np.array([[1e4, 0, -1e4], [-80, -80, -80], [0, -np.inf, 0]], np.float32)
    assert token_nats(logits, np.array([1, 2, 0])) == pytest.approx([1e4, math.log(3), math.log(2)])
