"""The native sampler on every kernel path, beside what NumPy draws and beside plain arithmetic."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.runtime.numpy_sampler import (
    adjusted,
    cumulative_distribution,
    draw,
    log_probabilities,
)

from pliant import _native
from pliant.errors import GenerationError
from pliant.runtime import SamplingOptions

PATHS = _native.kernels.paths()
#: How far apart two cumulative distributions may be.
EDGE = 1e-5

OPTION_SETS: list[dict[str, Any]] = [
    {"temperature": 1.0},
    {"temperature": 0.4},
    {"temperature": 1.0, "top_p": 0.95},
    {"temperature": 2.0, "top_p": 0.3},
    {"temperature": 1.0, "top_p": 0.9999},
    {"temperature": 1.0, "top_k": 40},
    {"temperature": 1.0, "top_k": 3000},
    {"temperature": 1.0, "min_p": 0.02},
    {"temperature": 1.5, "top_p": 0.97, "min_p": 0.01},
    {"temperature": 0.8, "top_k": 50, "top_p": 0.9, "min_p": 0.05},
]


def sampler(
    path: str, options: SamplingOptions, *, bias: dict[int, float] | None = None, **changes: Any
) -> _native.Sampler:
    """A native sampler; `seen`, `excluded` are lists of ids, penalties numbers."""
    bias = bias or {}
    return _native.Sampler(
        path,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        min_p=options.min_p,
        repetition_penalty=options.repetition_penalty,
        presence_penalty=changes.get("presence_penalty", 0.0),
        frequency_penalty=changes.get("frequency_penalty", 0.0),
        biased=np.array(list(bias), np.int32),
        biases=np.array(list(bias.values()), np.float32),
        excluded=np.array(changes.get("excluded", ()), np.int32),
        seen=np.array(changes.get("seen", ()), np.int32),
    )


def normal_logits(size: int, seed: int, spread: float = 3.0) -> NDArray[np.float32]:
    return np.random.default_rng([size, seed]).normal(0, spread, size).astype(np.float32)


def odd_logits(size: int, seed: int, kind: str) -> NDArray[np.float32]:
    """Logits as no model writes them."""
    random = np.random.default_rng([size, seed])
    logits = normal_logits(size, seed)
    if kind == "equal":
        logits[:] = random.normal()
    elif kind == "ties":
        logits = np.round(logits)
    elif kind == "huge":
        logits *= np.float32(10.0 ** random.uniform(1, 37))
    elif kind == "tiny":
        logits *= np.float32(1e-3)
    elif kind == "peaks":
        logits[random.integers(0, size, min(size, 3))] += 20
    elif kind == "falling":
        logits = -np.sort(-logits)
    if kind == "excluded" or random.random() < 0.2:
        logits[random.random(size) < 0.9] = -np.inf
        logits[random.integers(0, size)] = 1.0
    return logits.astype(np.float32)


def acceptable(
    scores: NDArray[np.float32], options: SamplingOptions, uniforms: list[float]
) -> list[set[int]]:
    """For each uniform the tokens whose part of the distribution it may be in.

    A token at the edge of a nucleus, or as likely as min-p asks, may be in or out by rounding.
    """
    found: list[set[int]] = [set() for _ in uniforms]
    near_p = {min(options.top_p * factor, 1.0) for factor in (1 - 2e-6, 1, 1 + 2e-6)}
    near_min = {min(options.min_p * factor, 1.0) for factor in (1 - 1e-5, 1, 1 + 1e-5)}
    for top_p in near_p if options.top_p < 1 else {1.0}:
        for min_p in near_min:
            near = SamplingOptions(temperature=options.temperature, top_k=options.top_k,
                                   top_p=top_p, min_p=min_p)  # fmt: skip
            ids, cumulative = cumulative_distribution(scores, near)
            for one, uniform in zip(found, uniforms, strict=True):
                near_edges = [uniform - EDGE, uniform + EDGE]
                low, high = np.searchsorted(cumulative / cumulative[-1], near_edges, side="right")
                one.update(ids[low : high + 1].tolist())
    return found


def nucleus_is_clear(scores: NDArray[np.float32], options: SamplingOptions) -> bool:
    """Whether no two tokens about the edge are so alike that rounding may exchange them."""
    if options.top_p >= 1:
        return True
    ids, _ = cumulative_distribution(scores, options)
    weights = np.exp((scores.astype(np.float64) - scores.max()) / options.temperature)
    last = weights[ids].min()
    gaps = np.abs(weights - last) / last
    return not ((gaps > 0) & (gaps < 2e-6)).any()


@given(
    size=st.one_of(st.integers(1, 20), st.integers(1, 1500), st.integers(8000, 12_000)),
    seed=st.integers(0, 2**32),
    kind=st.sampled_from(
        ["normal", "equal", "ties", "huge", "tiny", "peaks", "falling", "excluded"]
    ),
    temperature=st.sampled_from([0.0, 0.3, 1.0, 5.0]),
    top_k=st.one_of(st.just(0), st.integers(1, 100), st.integers(1, 12_000)),
    top_p=st.one_of(st.just(1.0), st.floats(1e-9, 1.0)),
    min_p=st.one_of(st.just(0.0), st.floats(0.0, 1.0), st.floats(0.0, 0.01)),
    path=st.sampled_from(PATHS),
)
@settings(deadline=None, max_examples=300)
def test_odd_logits_give_the_tokens_of_the_reference(
    size: int, seed: int, kind: str, temperature: float, top_k: int, top_p: float, min_p: float,
    path: str,
) -> None:  # fmt: skip
    options = SamplingOptions(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    logits = odd_logits(size, seed, kind)
    native = sampler(path, options)
    if temperature == 0:
        assert native.sample(logits, 0.7) == int(np.argmax(logits))
        return
    assume(nucleus_is_clear(logits, options))
    uniforms = [0.0, 1 - 2.0**-53, *np.random.default_rng(seed).random(6).tolist()]
    for uniform, tokens in zip(uniforms, acceptable(logits, options, uniforms), strict=True):
        assert native.sample(logits, uniform) in tokens, uniform


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("named", OPTION_SETS, ids=str)
def test_draws_from_a_vocabulary_follow_the_distribution(path: str, named: dict[str, Any]) -> None:
    """Of evenly spaced numbers each token gets its share, but for one at either end."""
    options, count = SamplingOptions(**named), 500
    size = 151_936 if path == PATHS[0] else 20_003
    logits = normal_logits(size, 1)
    logits[np.random.default_rng(2).integers(0, size, 12)] += np.linspace(0, 14, 12, dtype="f4")
    ids, cumulative = cumulative_distribution(logits, options)
    cumulative /= cumulative[-1]
    native = sampler(path, options)
    drawn = [native.sample(logits, (i + 0.5) / count) for i in range(count)]
    assert (np.diff(drawn) >= 0).all(), "by ascending ids"
    assert set(drawn) <= set(ids.tolist())
    expected = np.diff(np.concatenate([[0], cumulative])) * count
    found = np.bincount(np.searchsorted(ids, drawn), minlength=len(ids))
    assert (np.abs(found - expected) <= 1 + 2 * EDGE * count).all()
    below = np.searchsorted(np.sort(drawn), ids, side="right") / count
    assert (np.abs(below - cumulative) <= 1 / count + EDGE).all()


@pytest.mark.parametrize("path", PATHS)
def test_everything_that_is_asked_of_logits(path: str) -> None:
    """Biases, penalties, exclusions and a mask, over texts, for vocabularies of any last block."""
    for size in (1, 31, 128, 129, 1000, 2077):
        random = np.random.default_rng(size)
        options = SamplingOptions(temperature=1.0, repetition_penalty=1.3, top_p=0.999)
        bias = {int(i): float(random.normal(0, 4)) for i in random.integers(0, size, 9)}
        excluded = [] if size == 1 else [0, size // 2]
        seen = random.integers(0, size, 40).tolist()
        native = sampler(path, options, bias=bias, excluded=excluded, seen=seen,
                         presence_penalty=0.7, frequency_penalty=0.4)  # fmt: skip
        written: dict[int, int] = {}
        for step in range(20):
            logits = normal_logits(size, step, 2.0)
            masked = step % 2 == 1
            allowed = random.random(size) < random.choice([0.01, 0.5, 0.999])
            allowed[random.integers(1, size) if size > 1 else 0] = True
            allowed[[i for i in range(size) if i not in excluded][-1]] = True
            words = np.packbits(np.pad(allowed, (0, -size % 32)), bitorder="little").view("<u4")
            scores = adjusted(
                logits, logit_bias=bias, counts=written, presence_penalty=0.7,
                frequency_penalty=0.4, excluded=excluded, allowed_V=allowed if masked else None,
                seen=[*seen, *written], repetition_penalty=1.3,
            )  # fmt: skip
            uniform = random.random()
            before = logits.copy()
            token = native.sample(logits, uniform, words if masked else None)
            assert (logits == before).all()
            assert token in acceptable(scores, options, [uniform])[0], (size, step)
            written[token] = written.get(token, 0) + 1


@pytest.mark.parametrize("path", PATHS)
def test_temperatures_that_float32_cannot_hold(path: str) -> None:
    logits = np.array([1, -np.inf, 3, 2.5], np.float32)
    for temperature in (5e-324, 1e-50, 1e-30):
        native = sampler(path, SamplingOptions(temperature=temperature))
        assert {native.sample(logits, u) for u in (0.0, 0.5, 0.999)} == {2}
    for temperature in (1e30, 1e50, 1.7e308):
        native = sampler(path, SamplingOptions(temperature=temperature))
        assert [native.sample(logits, u) for u in (0.0, 0.34, 0.67)] == [0, 2, 3]


def test_threads_draw_the_same() -> None:
    """Samplers of several threads at once, and one that several threads share against the rule."""
    logits = [normal_logits(30_000, seed) for seed in range(4)]
    options = SamplingOptions(temperature=1.0, top_p=0.95, repetition_penalty=1.2)
    shared, results = sampler(PATHS[0], options, seen=[5]), list[list[int]]()

    def work() -> None:
        own = sampler(PATHS[0], options, seen=[5])
        results.append([own.sample(logits[i % 4], (i % 17) / 17) for i in range(60)])
        for i in range(60):
            assert 0 <= shared.sample(logits[i % 4], 0.5) < 30_000

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert all(result == results[0] for result in results)


class TestBadInput:
    @pytest.mark.parametrize("path", PATHS)
    @pytest.mark.parametrize("size", [1, 5, 128, 300])
    def test_damaged_logits_name_the_token(self, path: str, size: int) -> None:
        options = [SamplingOptions(temperature=t, top_p=p) for t, p in ((0, 1), (1, 1), (1, 0.5))]
        for bad, word in ((np.nan, "nan"), (np.inf, "inf")):
            for place in {0, size // 2, size - 1}:
                logits = normal_logits(size, 0)
                logits[place] = bad
                for one in options:
                    with pytest.raises(GenerationError, match=f"{word} for token {place};"):
                        sampler(path, one).sample(logits, 0.5)
                with pytest.raises(GenerationError, match=f"{word} for token {place};"):
                    _native.log_probabilities(path, logits, 0, 3)
                if size > 1:  # what may not come may be anything
                    sampler(path, options[1], excluded=[place]).sample(logits, 0.5)
        nothing = np.full(size, -np.inf, np.float32)
        with pytest.raises(GenerationError, match="-inf for token 0"):
            sampler(path, options[1]).sample(nothing, 0.5)
        with pytest.raises(GenerationError, match="-inf for token 0"):
            none = np.zeros((size + 31) // 32, np.uint32)
            sampler(path, options[1]).sample(normal_logits(size, 0), 0.5, none)

    @given(data=st.binary(min_size=4, max_size=2400), seed=st.integers(0, 2**32),
           path=st.sampled_from(PATHS))  # fmt: skip
    @settings(deadline=None, max_examples=200)
    def test_any_bits_give_an_allowed_token_or_an_error(
        self, data: bytes, seed: int, path: str
    ) -> None:
        logits = np.frombuffer(data[: len(data) // 4 * 4], np.float32)
        random = np.random.default_rng(seed)
        words = random.integers(0, 2**32, (len(logits) + 31) // 32, np.uint32)
        allowed = np.unpackbits(words.view(np.uint8), bitorder="little")[: len(logits)] == 1
        for named in OPTION_SETS:
            native = sampler(path, SamplingOptions(**named), bias={0: 3.0})
            possible = np.where(allowed, logits, -np.inf)
            try:
                token = native.sample(logits, float(random.random()), words)
            except GenerationError:
                largest = possible.max(initial=-np.inf)
                assert not np.isfinite(largest) or not np.isfinite(largest + 3)
            else:
                assert np.isfinite(possible[token])

    def test_arguments_that_cannot_be(self) -> None:
        logits, options = normal_logits(40, 0), SamplingOptions(temperature=1.0)
        native = sampler(PATHS[0], options)
        for uniform in (-0.1, 1.0, np.nan, np.inf):
            with pytest.raises(ValueError, match=r"\[0, 1\)"):
                native.sample(logits, uniform)
        with pytest.raises(ValueError, match="bit for each"):
            native.sample(logits, 0.5, np.ones(1, np.uint32))
        with pytest.raises(ValueError, match="logits"):
            native.sample(np.zeros(0, np.float32), 0.5)
        with pytest.raises(TypeError):
            native.sample(logits.reshape(2, 20), 0.5)
        for changes in ({"bias": {40: 1.0}}, {"excluded": [2**31 - 1]}):
            with pytest.raises(GenerationError, match="40 tokens only"):
                sampler(PATHS[0], options, **changes).sample(logits, 0.5)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="0 or more"):
            sampler(PATHS[0], options, bias={-1: 1.0})
        with pytest.raises(ValueError, match="abacus"):
            sampler("abacus", options)
        for token, count, word in ((40, 1, "no such token"), (-1, 1, "no such"), (0, -1, "count")):
            with pytest.raises(ValueError, match=word):
                _native.log_probabilities(PATHS[0], logits, token, count)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("size", [1, 2, 127, 128, 129, 5000, 40_001])
def test_log_probabilities(path: str, size: int) -> None:
    for seed, kind in enumerate(("normal", "equal", "ties", "peaks", "falling", "excluded")):
        logits = odd_logits(size, seed, kind)
        for count in (0, 1, 20, *((size, size + 5) if size < 9999 else ())):
            token = int(np.random.default_rng(seed).integers(size))
            found, top = _native.log_probabilities(path, logits, token, count)
            exact, likely = log_probabilities(logits, token, count)
            assert found == pytest.approx(exact, abs=1e-6, rel=0)
            assert [one for one, _ in top] == [one for one, _ in likely]
            np.testing.assert_allclose([p for _, p in top], [p for _, p in likely], 0, 1e-6)


def test_the_reference_draws_by_the_inverse_of_its_distribution() -> None:
    scores = np.log(np.array([0.25, 0.5, 0.25], np.float32))
    one = SamplingOptions(temperature=1.0)
    assert [draw(scores, one, u) for u in (0.0, 0.24, 0.26, 0.74, 0.76, 0.999)] == [
        0, 0, 1, 1, 2, 2,
    ]  # fmt: skip
