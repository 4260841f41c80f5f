"""Kneser-Ney: a distribution over tokens, and the numbers of a text small enough to count."""

from __future__ import annotations

import numpy as np
import pytest

from pliant.errors import DataError, UsageError
from pliant.evaluate.ngram import NgramModel

VOCABULARY = 11


@pytest.fixture(scope="module")
def stream() -> np.ndarray:
    random = np.random.default_rng(0)
    # A Markov chain with skewed jumps, so that every order has counts of 1, 2, 3 and 4.
    return np.cumsum(random.geometric(0.6, size=4000)) % VOCABULARY


@pytest.fixture(scope="module")
def model(stream: np.ndarray) -> NgramModel:
    return NgramModel.train(stream, VOCABULARY, order=4)


@pytest.mark.parametrize("context", [[], [3], [1, 2], [1, 2, 3], [9, 9, 9], [0, 1, 2, 3, 4]])
def test_probabilities_of_all_tokens_sum_to_one(model: NgramModel, context: list[int]) -> None:
    probability = model.next_probabilities(np.array(context, dtype=np.int64))
    assert probability.min() > 0
    assert probability.sum() == pytest.approx(1, abs=1e-12)


def test_scoring_a_text_agrees_with_scoring_its_places(
    model: NgramModel, stream: np.ndarray
) -> None:
    text = stream[:40]
    expected = [np.log(model.next_probabilities(text[:i])[text[i]]) for i in range(1, 40)]
    np.testing.assert_allclose(model.log_probabilities(text), expected, rtol=1e-12)


def test_a_text_counted_by_hand() -> None:
    # "0 1 0 1 2" in bigrams: 01 twice, 10 once, 12 once; too few counts, so all discounts are 1/2.
    model = NgramModel.train(np.array([0, 1, 0, 1, 2]), 3, order=2)
    # Left neighbours of 0, 1, 2: one each, so the unigram is uniform whatever the discount.
    np.testing.assert_allclose(model.next_probabilities(np.array([])), [1 / 3] * 3)
    # After 0: count 2 of 2, discounted to 1.5 / 2; the half that is left goes to the unigram.
    after_zero = model.next_probabilities(np.array([0]))
    np.testing.assert_allclose(after_zero, [0.25 / 3, 0.75 + 0.25 / 3, 0.25 / 3])
    # After 1: two counts of 1, each discounted to 1/2 of 2.
    after_one = model.next_probabilities(np.array([1]))
    np.testing.assert_allclose(after_one, [0.25 + 0.5 / 3, 0.5 / 3, 0.25 + 0.5 / 3])
    # 2 was never followed by anything.
    np.testing.assert_allclose(model.next_probabilities(np.array([2])), [1 / 3] * 3)


def test_longer_contexts_predict_a_chain_of_order_two_better() -> None:
    random = np.random.default_rng(1)
    chain = [0, 1]
    for _ in range(6000):
        chain.append((chain[-1] + chain[-2] + int(random.random() < 0.2)) % 7)
    train, held_out = np.array(chain[:5000]), np.array(chain[5000:])
    losses = [-NgramModel.train(train, 7, n).log_probabilities(held_out).mean() for n in (1, 2, 3)]
    assert losses[2] < 0.6 < losses[1] < losses[0]


def test_impossible_requests_are_refused() -> None:
    with pytest.raises(DataError, match="3 tokens"):
        NgramModel.train(np.array([0, 1, 2]), 3, order=5)
    with pytest.raises(DataError, match="outside the vocabulary"):
        NgramModel.train(np.array([0, 1, 5]), 3, order=2)
    with pytest.raises(UsageError, match="63 bits"):
        NgramModel.train(np.arange(10), 1 << 16, order=5)
