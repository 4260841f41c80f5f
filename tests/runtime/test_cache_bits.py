"""Caches of 4, 3 and 2 bits: what a token sees depends on its place alone; cuts say the truth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pliant.bits.cache import CACHE_BITS, CacheFormat
from pliant.errors import GenerationError, UsageError
from pliant.evaluate.continuations import Continuation, score_continuations
from pliant.runtime import Chunk, Engine
from pliant.subnet import Subnet

EngineMaker = Callable[..., Engine]
CODED = ["int4", "int3", "int2"]


def tokens_of(count: int, seed: int = 0) -> NDArray[np.int32]:
    return np.random.default_rng(seed).integers(0, 131, count, np.int32)


def feed(engine: Engine, cache: Any, tokens: NDArray[np.int32], sizes: Sequence[int] = ()) -> Any:
    """All logits of tokens behind a cache, in chunks of these sizes and then the rest."""
    parts = np.split(tokens, np.cumsum(sizes, dtype=int))
    rows = [engine.forward_chunk([Chunk(part, cache, logits="all")])[0]
            for part in parts if part.size]  # fmt: skip
    return np.concatenate(rows)


def run(engine: Engine, tokens: NDArray[np.int32], sizes: Sequence[int] = ()) -> Any:
    return feed(engine, engine.new_cache(engine.max_context), tokens, sizes)


@pytest.mark.parametrize("capacity", [1, 63, 64, 65, 128, 129, 193, 600])
@pytest.mark.parametrize("window", [0, 64, 192])
def test_bytes_are_those_of_the_format(
    make_engine: EngineMaker, capacity: int, window: int
) -> None:
    for cache_type in CACHE_BITS:
        engine = make_engine({"cache_type": cache_type, "cache_window": window})
        cache = engine.new_cache(capacity)
        form = CacheFormat.of_type(cache_type, window)
        assert cache.num_bytes == form.num_bytes(6, 12, capacity) == engine.memory()["cache"]


def test_max_bytes_is_a_hard_limit(make_engine: EngineMaker) -> None:
    engine = make_engine({"cache_type": "int2"})
    limit = engine.new_cache(300).num_bytes + 5
    cache = engine.new_cache(600, max_bytes=limit)
    assert cache.num_bytes <= limit < engine.new_cache(cache.capacity + 1).num_bytes
    with pytest.raises(GenerationError, match="One token takes"):
        engine.new_cache(600, max_bytes=100)


@pytest.mark.parametrize("cache_type", CODED)
@pytest.mark.parametrize("window", [0, 64])
def test_only_what_left_the_window_is_rounded(
    make_engine: EngineMaker, cache_type: str, window: int
) -> None:
    tokens = tokens_of(window + 70)
    coded = run(make_engine({"cache_type": cache_type, "cache_window": window}), tokens)
    exact = run(make_engine({"cache_type": "float16"}), tokens)
    np.testing.assert_array_equal(coded[: window + 64], exact[: window + 64])
    assert np.all(np.abs(coded[window + 64 :] - exact[window + 64 :]).max(axis=1) > 0)


@pytest.mark.parametrize("cache_type", CODED)
@pytest.mark.parametrize("windows", [(6, 0), (100, 270)])
def test_any_way_of_cutting_into_chunks(
    make_engine: EngineMaker, cache_type: str, windows: tuple[int, int]
) -> None:
    engine, tokens = make_engine({"cache_type": cache_type}, block_windows=windows), tokens_of(420)
    whole = run(engine, tokens)
    for sizes in ((1,) * 150, (63, 1, 1, 64, 190), (300, 7), (64,) * 6):
        np.testing.assert_array_equal(run(engine, tokens, sizes), whole)


@pytest.mark.parametrize("groups", [3, 1])
def test_any_number_of_threads(make_engine: EngineMaker, groups: int) -> None:
    changes = {"num_groups": groups, "hidden_size": 200, "vocab_size": 2000, "ffn_size": 420}
    tokens, results = tokens_of(340), []
    for threads in (1, 2, 3, 5):
        options = {"threads": threads, "cache_type": "int3", "cache_window": 0}
        with make_engine(options, **changes) as engine:
            results.append(run(engine, tokens, (290, 4, *[1] * 30)))
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


def test_batch_mates_do_not_matter(make_engine: EngineMaker) -> None:
    engine = make_engine({"threads": 2, "cache_type": "int4"})
    prompts = [tokens_of(size, size) for size in (200, 3, 301, 140)]
    caches = [engine.new_cache(600) for _ in prompts]
    for cache, prompt in zip(caches, prompts, strict=True):
        feed(engine, cache, prompt[: prompt.size // 2])
    found = engine.forward_chunk(
        [Chunk(p[p.size // 2 :], c, logits="all") for p, c in zip(prompts, caches, strict=True)]
    )
    for prompt, logits in zip(prompts, found, strict=True):
        np.testing.assert_array_equal(logits, run(engine, prompt)[prompt.size // 2 :])


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_exact_cuts_leave_no_trace(make_engine: EngineMaker, data: st.DataObject) -> None:
    """Cuts and copies down to `exact_from` go on as if the cache had never been longer."""
    window = data.draw(st.sampled_from([0, 64]))
    engine = make_engine({"cache_type": "int2", "cache_window": window})
    tokens = tokens_of(400, 5)
    length = data.draw(st.integers(1, 330))
    cache = engine.new_cache(400)
    feed(engine, cache, tokens[:length])
    assert cache.exact_from <= max(0, length - 64)
    kept = data.draw(st.integers(cache.exact_from, length))
    more = data.draw(st.integers(1, 70))
    expected = run(engine, tokens[: kept + more])[kept:]
    copied = cache.copy(kept, data.draw(st.integers(kept + more, 600)))
    cache.truncate(kept)
    for one in (copied, cache):
        np.testing.assert_array_equal(feed(engine, one, tokens[kept : kept + more]), expected)


def test_deep_cuts_are_near_and_the_same_each_time(make_engine: EngineMaker) -> None:
    """Below `exact_from` the window itself comes back from codes."""
    engine, tokens = make_engine({"cache_type": "int4"}), tokens_of(500)
    fresh = run(engine, tokens[:260])[210:]
    results = []
    for _ in range(2):
        cache = engine.new_cache(500)
        feed(engine, cache, tokens[:450])
        assert cache.exact_from > 210
        copied = cache.copy(210, 270)
        cache.truncate(210)
        results += [feed(engine, one, tokens[210:260]) for one in (cache, copied)]
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])
    assert 0 < np.abs(results[0] - fresh).max() < 0.5 * np.abs(fresh).max()
    cache.truncate(0)
    assert cache.exact_from == 0
    np.testing.assert_array_equal(feed(engine, cache, tokens[:260])[210:], fresh)


class BrokenToken:
    """An artifact whose token 130 has an embedding that is no number."""

    def __init__(self, artifact: Any) -> None:
        self._artifact = artifact

    def __getattr__(self, name: str) -> Any:
        return getattr(self._artifact, name)

    def scales(self, name: str) -> NDArray[np.uint16]:
        scales = self._artifact.scales(name)
        if name != "embedding":
            return scales
        scales = scales.copy()
        scales.reshape(-1)[4 * 32 + 130 % 32] = 0x7E00  # one group of 64 columns, five tiles
        return scales


@pytest.mark.parametrize("before", [0, 40, 128, 150])
@pytest.mark.parametrize("coming", [20, 70, 430])
def test_a_failed_request_leaves_caches_as_they_were(
    memory_artifact: Callable[..., Any], make_engine: EngineMaker, before: int, coming: int
) -> None:
    """It fails at its last token, by when the ring may have been written over several times."""
    spec = make_engine(tied_embeddings=False).subnet.spec
    artifact = BrokenToken(memory_artifact(spec))
    engine = Engine(
        artifact, Subnet.full(spec, 8), 1, cache_type="int3", cache_window=0, check_finite=True
    )
    tokens = tokens_of(600) % 130
    cache = engine.new_cache(600)
    if before:
        feed(engine, cache, tokens[:before])
    with pytest.raises(GenerationError, match=r"NaN|finite|number"):
        engine.forward_chunk([Chunk(np.append(tokens[before : before + coming], 130), cache)])
    assert cache.length == before
    expected = run(engine, tokens[: before + 90])[before:]
    np.testing.assert_array_equal(feed(engine, cache, tokens[before : before + 90]), expected)


@pytest.mark.parametrize("entries", ["keep", "exact"])
def test_switching_takes_codes_along(make_engine: EngineMaker, entries: str) -> None:
    engine, tokens = make_engine({"cache_type": "int4"}), tokens_of(330)
    coarse = Subnet.full(engine.subnet.spec, 3)
    cache = engine.new_cache(500)
    feed(engine, cache, tokens[:300])
    engine.switch(coarse, entries=entries)  # type: ignore[arg-type]
    found = feed(engine, cache, tokens[300:])
    if entries == "exact":
        other = make_engine({"cache_type": "int4"}, planes=3)
        np.testing.assert_array_equal(found, run(other, tokens)[300:])
    else:
        assert np.isfinite(found).all()
        engine.switch(Subnet.full(coarse.spec, 8))
        cache.truncate(300)
        whole = run(make_engine({"cache_type": "int4"}), tokens)[300:]
        np.testing.assert_array_equal(feed(engine, cache, tokens[300:]), whole)


def test_trees_are_checked_behind_codes(make_engine: EngineMaker) -> None:
    """Branches with a mask across the end of a unit, each as its own plain sequence."""
    engine, tokens = make_engine({"cache_type": "int3", "cache_window": 0}), tokens_of(190)
    cache = engine.new_cache(600)
    feed(engine, cache, tokens)
    branch = np.array([7, 8, 9], np.int32)
    mask = np.tril(np.ones((3, 3), np.bool_))
    mask[2, 1] = False  # the third is another child of the first
    logits = engine.forward_chunk(
        [Chunk(branch, cache, positions=np.array([190, 191, 191], np.int32), mask=mask,
               logits="all")]
    )[0]  # fmt: skip
    plain = run(engine, np.concatenate([tokens, branch[:2]]))[190:]
    np.testing.assert_array_equal(logits[:2], plain)
    cache.truncate(190)
    np.testing.assert_array_equal(feed(engine, cache, branch[:2]), plain)


def test_scores_do_not_depend_on_their_order(make_engine: EngineMaker) -> None:
    """Continuations share a long context only where a cut back to it is exact."""
    engine, tokens = make_engine({"cache_type": "int2"}), tokens_of(520).tolist()
    requests = [
        Continuation(tuple(tokens[:begin]), tuple(tokens[begin:end]))
        for begin, end in ((150, 400), (150, 155), (200, 201), (150, 330), (390, 420))
    ]
    alone = [score_continuations(engine, [request])[0] for request in requests]
    assert score_continuations(engine, requests, lanes=1) == alone


@pytest.mark.parametrize("options", [{"cache_type": "int5"}, {"cache_window": 48}])
def test_formats_that_cannot_be(make_engine: EngineMaker, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="asked for; use"):
        make_engine({"cache_type": "int4", **options})


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([0, 64, 128]), st.integers(1, 600), st.lists(st.integers(0, 600), max_size=4)
)
def test_exact_lengths_are_those_of_the_engine(
    make_engine: EngineMaker, window: int, first: int, cuts: list[int]
) -> None:
    """What a scheduler believes of a cache that was cut and grew again, the cache says too."""
    engine = make_engine(
        {"cache_type": "int2", "cache_window": window}, num_blocks=1, block_windows=(0,)
    )
    cache, rules = engine.new_cache(600), engine.sequence_cache
    engine.forward_chunk([Chunk(tokens_of(first), cache, logits="none")])
    longest = first
    for cut in cuts:
        length = rules.exact_length(min(cut, cache.length), longest)
        exact = length >= cache.exact_from or length == 0
        assert exact or (window == 0 and length % 64 == 0)
        cache.truncate(length)
        grown = min(70, 600 - length)
        if grown:
            engine.forward_chunk([Chunk(tokens_of(grown), cache, logits="none")])
        longest = max(longest, cache.length)


def test_an_engine_takes_the_cache_of_the_plan(make_engine: EngineMaker) -> None:
    """What is told explicitly goes before it, and holds for all cuts it switches to."""
    plain = make_engine({})
    artifact, planned = plain._artifact, plain.subnet.with_cache(3, 0)
    tokens = tokens_of(200)
    told = make_engine({"cache_type": "int3", "cache_window": 0})
    with Engine(artifact, planned, 1) as engine, Engine(artifact, planned, 1, cache_window=64) as x:
        assert engine.cache_format == CacheFormat(bits=3, window=0) == told.cache_format
        assert engine.subnet == planned == told.subnet
        assert x.cache_format == CacheFormat(bits=3, window=64)
        np.testing.assert_array_equal(run(engine, tokens), run(told, tokens))
        with pytest.raises(UsageError, match="holds its cache as float16, this engine as int3"):
            engine.switch(plain.subnet)
        assert engine.subnet == planned
        engine.switch(Subnet.full(planned.spec, 3).with_cache(3, 0))
    made = told.switch(Subnet.full(planned.spec, 3))
    assert made.after.bits.cache == told.cache_format
    with Engine(artifact, planned, 1, cache_type="float16") as exact:
        np.testing.assert_array_equal(run(exact, tokens), run(plain, tokens))
