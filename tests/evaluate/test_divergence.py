"""KL is the textbook's, zero for equal models, and streamed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pliant.errors import DataError, UsageError, VerificationError
from pliant.evaluate import divergence, kl_nats
from pliant.runtime import Tokenizer

TEXT = "A fox, a café, 中文 and 😀: the end of the story came too early.\n" * 4


def test_a_model_does_not_differ_from_itself(model: Any, tokenizer: Tokenizer) -> None:
    found = divergence(model, model, tokenizer, TEXT)
    assert (found.mean_nats, found.max_nats, found.top1_agreement) == (0, 0, 1)
    assert found.tokens == len(tokenizer.encode(TEXT))


def test_figures_are_those_of_all_tokens_at_once(
    make_model: Callable[..., Any], tokenizer: Tokenizer
) -> None:
    reference, model = make_model(noise=0.0), make_model(noise=0.3)
    tokens = tokenizer.encode(TEXT)
    nats, same = [], []
    for place in range(len(tokens)):
        before = [256, *tokens[place - place % 20 : place]]
        first, second = reference.logits_after(before), model.logits_after(before)
        p, q = (np.exp(row - row.max()) for row in (first, second))
        p, q = p / p.sum(), q / q.sum()
        nats.append((p * np.log(p / q)).sum())
        same.append(first.argmax() == second.argmax())
    found = divergence(model, reference, tokenizer, TEXT, 20)
    # KL of each token is kept as float32.
    assert found.mean_nats == pytest.approx(np.mean(nats), rel=1e-6)
    assert found.median_nats == pytest.approx(np.median(nats), rel=1e-6)
    assert found.p99_nats == pytest.approx(np.percentile(nats, 99), rel=1e-6)
    assert found.max_nats == pytest.approx(np.max(nats), rel=1e-6)
    assert found.top1_agreement == np.mean(same)


def test_more_noise_is_further_away(make_model: Callable[..., Any], tokenizer: Tokenizer) -> None:
    reference = make_model()
    found = [
        divergence(make_model(noise=noise), reference, tokenizer, TEXT)
        for noise in (0.05, 0.2, 0.8)
    ]
    assert found[0].mean_nats < found[1].mean_nats < found[2].mean_nats
    assert found[0].top1_agreement > found[2].top1_agreement


def test_kl_of_known_distributions() -> None:
    reference = np.log(np.array([[0.5, 0.5, 1e-30], [0.9, 0.05, 0.05]], np.float32))
    model = np.log(np.array([[0.25, 0.75, 1e-30], [0.9, 0.05, 0.05]], np.float32))
    expected = 0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75)
    assert kl_nats(reference, model) == pytest.approx([expected, 0], abs=1e-6)
    # What the reference excludes costs nothing; what only the model excludes costs everything.
    excluded = np.array([[0.0, 0.0, -np.inf]], np.float32)
    open_ = np.zeros((1, 3), np.float32)
    assert kl_nats(excluded, open_) == pytest.approx([np.log(1.5)])
    assert kl_nats(excluded, excluded) == pytest.approx([0])
    assert kl_nats(open_, excluded) == np.inf


def test_the_shorter_context_decides(make_model: Callable[..., Any], tokenizer: Tokenizer) -> None:
    found = divergence(make_model(max_context=16), make_model(max_context=64), tokenizer, TEXT)
    assert found.max_nats == 0
    with pytest.raises(UsageError, match="context"):
        divergence(make_model(max_context=16), make_model(), tokenizer, TEXT, 17)


class TestBadInput:
    def test_other_vocabulary(self, make_model: Callable[..., Any], tokenizer: Tokenizer) -> None:
        with pytest.raises(UsageError, match="257 tokens and the reference 300"):
            divergence(make_model(), make_model(vocab_size=300), tokenizer, TEXT)

    def test_empty_text(self, model: Any, tokenizer: Tokenizer) -> None:
        with pytest.raises(DataError, match="empty"):
            divergence(model, model, tokenizer, "")

    def test_a_damaged_model(self, make_model: Callable[..., Any], tokenizer: Tokenizer) -> None:
        damaged = make_model()
        damaged._bigram[:, 3] = np.nan
        with pytest.raises(VerificationError, match="pliant verify"):
            divergence(damaged, make_model(), tokenizer, TEXT)
