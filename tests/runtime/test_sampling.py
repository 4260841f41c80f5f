"""The reference is transformers, draws depend on seed and step, options are checked."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.runtime.numpy_sampler import adjusted, distribution

from pliant.errors import GenerationError
from pliant.runtime import Sampler, SamplingOptions

OPTION_SETS: list[dict[str, Any]] = [
    {"temperature": 1.0},
    {"temperature": 0.7},
    {"temperature": 1.7, "top_k": 5},
    {"temperature": 1.0, "top_k": 1},
    {"temperature": 1.0, "top_k": 10_000},
    {"temperature": 0.8, "top_p": 0.9},
    {"temperature": 1.0, "top_p": 0.02},
    {"temperature": 3.0, "top_p": 0.999},
    {"temperature": 1.0, "min_p": 0.1},
    {"temperature": 1.0, "min_p": 1.0},
    {"temperature": 0.9, "top_k": 40, "top_p": 0.8, "min_p": 0.05, "repetition_penalty": 1.3},
    {"temperature": 1.2, "top_p": 0.95, "repetition_penalty": 0.8},
]


def random_logits(size: int, seed: int, spread: float = 3.0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, spread, size).astype(np.float32)


def whole(size: int, logits: NDArray[np.float32], options: SamplingOptions) -> NDArray[np.float64]:
    """The distribution over the whole vocabulary."""
    ids, probabilities = distribution(logits, options)
    assert (np.diff(ids) > 0).all()
    found = np.zeros(size)
    found[ids] = probabilities
    return found


def transformers_distribution(
    logits: NDArray[np.float32], prompt: list[int], options: SamplingOptions
) -> NDArray[np.float64]:
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from transformers.generation import logits_process as theirs

    ids, scores = torch.tensor([prompt]), torch.tensor(logits)[None]
    steps: list[Any] = []
    if options.repetition_penalty != 1:
        steps.append(theirs.RepetitionPenaltyLogitsProcessor(options.repetition_penalty))
    steps.append(theirs.TemperatureLogitsWarper(options.temperature))
    if options.top_k:
        steps.append(theirs.TopKLogitsWarper(options.top_k))
    if options.top_p < 1:
        steps.append(theirs.TopPLogitsWarper(options.top_p))
    if options.min_p:
        steps.append(theirs.MinPLogitsWarper(options.min_p))
    for step in steps:
        scores = step(ids, scores)
    probabilities: NDArray[np.float64] = scores[0].double().softmax(-1).numpy()
    return probabilities


@pytest.mark.parametrize("named", OPTION_SETS, ids=str)
@pytest.mark.parametrize("size", [1, 7, 105, 4096, 32_003])
def test_distribution_equals_transformers(size: int, named: dict[str, Any]) -> None:
    options = SamplingOptions(**named)
    for seed in range(3):
        logits = random_logits(size, seed)
        prompt = [int(i) for i in np.random.default_rng(seed).integers(0, size, 9)]
        expected = transformers_distribution(logits, prompt, options)
        penalty = options.repetition_penalty
        penalized = adjusted(logits, seen=prompt, repetition_penalty=penalty)
        found = whole(size, penalized, options)
        # Theirs is fp32: its exponentials and its running sum over `size` tokens are off by up to
        # size * 2^-24 of the whole, and a token at the edge of a nucleus may be in or out by that.
        edge = size * 2.0**-24 + 1e-6
        differing = (found > 0) != (expected > 0)
        assert (expected[differing] + found[differing] <= 4 * edge).all()
        assert np.abs(found - expected).max() <= 4 * edge


@given(
    seed=st.integers(0, 2**32),
    size=st.integers(1, 3000),
    top_p=st.floats(0.01, 1.0),
    spread=st.sampled_from([0.01, 1.0, 10.0]),
)
@settings(deadline=None, max_examples=60)
def test_nucleus_is_the_smallest_set_that_holds_the_mass(
    seed: int, size: int, top_p: float, spread: float
) -> None:
    logits = random_logits(size, seed, spread)
    ids, _ = distribution(logits, SamplingOptions(temperature=1.0, top_p=top_p))
    weights = np.exp(logits.astype(np.float64) - logits.max())
    order = np.lexsort((np.arange(size), -weights))
    mass = np.cumsum(weights[order]) / weights.sum()
    assert set(ids) == set(order[: len(ids)])
    assert mass[len(ids) - 1] >= top_p - 1e-9
    assert len(ids) == 1 or mass[len(ids) - 2] < top_p + 1e-9


def test_ties_at_the_edge_of_top_k_all_stay() -> None:
    ids, probabilities = distribution(
        np.array([1, 3, 2, 2, 0], np.float32), SamplingOptions(temperature=1.0, top_k=2)
    )
    assert ids.tolist() == [1, 2, 3]
    assert probabilities.sum() == pytest.approx(1, abs=1e-6)


def test_excluded_tokens_are_never_drawn() -> None:
    logits = np.full(50, -np.inf, np.float32)
    logits[[3, 40]] = 0
    sampler = Sampler(SamplingOptions(temperature=1.0, seed=5))
    assert {sampler.sample(logits) for _ in range(200)} == {3, 40}


class TestDraws:
    def test_greedy_takes_the_lowest_of_equals(self) -> None:
        sampler = Sampler(SamplingOptions())
        assert sampler.sample(np.array([0, 5, 5, 1], np.float32)) == 1
        assert sampler.sample(np.zeros(9, np.float32)) == 0

    def test_the_same_seed_draws_the_same(self) -> None:
        logits = [random_logits(300, step) for step in range(50)]
        runs = []
        for seed in (7, 7, 8):
            sampler = Sampler(SamplingOptions(temperature=1.0, seed=seed))
            runs.append([sampler.sample(row) for row in logits])
        assert runs[0] == runs[1]
        assert runs[0] != runs[2]

    def test_a_draw_depends_on_its_step_and_not_on_earlier_logits(self) -> None:
        first, second = (Sampler(SamplingOptions(temperature=1.0, seed=1)) for _ in range(2))
        for step in range(5):
            first.sample(random_logits(40, step))
            second.sample(random_logits(70, step))
        last = random_logits(90, 0)
        assert first.sample(last) == second.sample(last)

    def test_known_draws_stay(self) -> None:
        # Recorded once: a change here changes every seeded text of every user.
        sampler = Sampler(SamplingOptions(temperature=1.0, seed=2**64 - 1))
        logits = np.linspace(0, 3, 1000, dtype=np.float32)
        assert [sampler.sample(logits) for _ in range(6)] == KNOWN_DRAWS

    def test_frequencies_follow_the_probabilities(self) -> None:
        logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
        sampler = Sampler(SamplingOptions(temperature=1.0, seed=3))
        counts = np.bincount([sampler.sample(logits) for _ in range(8000)], minlength=4)
        # Five standard deviations of a binomial with n = 8000.
        expected = 8000 * np.array([0.5, 0.3, 0.15, 0.05])
        assert (np.abs(counts - expected) <= 5 * np.sqrt(expected)).all()

    def test_the_penalty_counts_written_tokens_too(self) -> None:
        sampler = Sampler(SamplingOptions(repetition_penalty=10.0), prompt=[2])
        logits = np.array([1.0, 2.0, 3.0, -0.5], np.float32)
        assert [sampler.sample(logits) for _ in range(4)] == [1, 0, 2, 2]

    def test_the_penalty_leaves_the_logits_untouched(self) -> None:
        logits = random_logits(20, 0)
        before = logits.copy()
        Sampler(SamplingOptions(repetition_penalty=2.0), prompt=[1, 2]).sample(logits)
        assert (logits == before).all()

    def test_a_mask_has_the_lowest_bits_first(self) -> None:
        sampler = Sampler(SamplingOptions(temperature=1.0, top_k=2**40, seed=4))
        allowed = np.array([1 << 3, 1 << 8], np.uint32)
        assert {sampler.sample(np.zeros(50, np.float32), allowed) for _ in range(60)} == {3, 40}

    def test_tokens_that_no_model_has(self) -> None:
        for token in (-1, 2**31, 2**40):
            for changes in ({"excluded": [token]}, {"logit_bias": {token: 1.0}}):
                with pytest.raises(GenerationError, match=f"Token {token} is in no vocabulary"):
                    Sampler(SamplingOptions(), **changes)  # type: ignore[arg-type]
        with pytest.raises(GenerationError, match="50 tokens only"):
            Sampler(SamplingOptions(), excluded=[50]).sample(np.zeros(50, np.float32))

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    def test_logits_that_are_no_numbers(self, bad: float, temperature: float) -> None:
        logits = np.array([0, bad, 1], np.float32)
        with pytest.raises(GenerationError, match="pliant verify"):
            Sampler(SamplingOptions(temperature=temperature)).sample(logits)
        with pytest.raises(GenerationError, match="pliant verify"):
            Sampler(SamplingOptions()).sample(np.full(4, -np.inf, np.float32))


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("temperature", -0.1, "0 .greedy. or more"),
        ("temperature", math.nan, "0 .greedy. or more"),
        ("temperature", math.inf, "0 .greedy. or more"),
        ("top_k", -1, "from 0"),
        ("top_k", 2.5, "whole number"),
        ("top_p", 0.0, "above 0 and up to 1"),
        ("top_p", 1.1, "above 0 and up to 1"),
        ("top_p", math.nan, "above 0 and up to 1"),
        ("min_p", -0.1, "from 0 to 1"),
        ("min_p", 2, "from 0 to 1"),
        ("repetition_penalty", 0.0, "above 0"),
        ("seed", -1, r"2\^64"),
        ("seed", 2**64, r"2\^64"),
        ("max_tokens", 0, "from 1"),
        ("max_tokens", True, "from 1"),
        ("stop", ("",), "not empty"),
        ("stop", (3,), "not empty"),
    ],
)
def test_options_outside_their_range_say_the_range(name: str, value: Any, rule: str) -> None:
    with pytest.raises(GenerationError, match=rule) as caught:
        SamplingOptions(**{name: value})
    assert name in str(caught.value)


def test_one_stop_text_needs_no_tuple() -> None:
    assert SamplingOptions(stop="END").stop == ("END",)  # type: ignore[arg-type]
    assert SamplingOptions(stop=["a", "b"]).stop == ("a", "b")  # type: ignore[arg-type]


KNOWN_DRAWS = [567, 895, 726, 895, 679, 914]
