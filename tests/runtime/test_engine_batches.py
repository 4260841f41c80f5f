"""Logits depend on the tokens a sequence has seen and on nothing else.

Not on threads, batch mates, chunk sizes; and masks, positions, log-weights mean what they say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pliant.runtime import Chunk, Engine

EngineMaker = Callable[..., Engine]
EXACT = {"activations": "float32", "cache_type": "float32", "threads": 1}


def tokens_of(count: int, seed: int = 0) -> NDArray[np.int32]:
    return np.random.default_rng(seed).integers(0, 131, count, np.int32)


def run(engine: Engine, tokens: NDArray[np.int32], sizes: Sequence[int] = ()) -> Any:
    """All logits of one sequence, given in chunks of these sizes and then the rest."""
    cache = engine.new_cache(tokens.size)
    parts = np.split(tokens, np.cumsum(sizes, dtype=int))
    return np.concatenate([engine.forward_chunk([Chunk(p, cache, logits="all")])[0] for p in parts])


@pytest.mark.parametrize(
    ("activations", "cache_type"), [("int8", "float16"), ("float32", "float32"), ("int8", "int8")]
)
@pytest.mark.parametrize("groups", [3, 1])
def test_any_number_of_threads(
    make_engine: EngineMaker, groups: int, activations: str, cache_type: str
) -> None:
    """Also where threads share the context of a group: beyond 256 tokens, 1 or 3 groups."""
    changes = {"num_groups": groups, "hidden_size": 200, "vocab_size": 2000, "ffn_size": 420}
    options = {"activations": activations, "cache_type": cache_type}
    tokens, results = tokens_of(300), []
    for threads in (1, 2, 3, 5):
        with make_engine({"threads": threads, **options}, **changes) as engine:
            # One long chunk, one short one, single tokens: every way of splitting work.
            results.append(run(engine, tokens, (260, 4, *[1] * 20)))
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


@pytest.mark.parametrize("cache_type", ["float16", "int8"])
@pytest.mark.parametrize("sizes", [(1,) * 39, (5, 1, 20), (39,), (17, 17)])
def test_any_way_of_cutting_into_chunks(
    make_engine: EngineMaker, sizes: tuple[int, ...], cache_type: str
) -> None:
    engine, tokens = make_engine({"cache_type": cache_type}), tokens_of(40)
    np.testing.assert_array_equal(run(engine, tokens, sizes), run(engine, tokens))


@pytest.mark.parametrize("windows", [(6, 0), (100, 270)])
def test_steps_of_a_long_prompt_leave_no_trace(
    make_engine: EngineMaker, windows: tuple[int, int]
) -> None:
    """Decoding at the end too, where windows begin in the middle of blocks and chunks."""
    engine, tokens = make_engine(block_windows=windows), tokens_of(600)
    sizes = (100, 300, 1, *[1] * 150)
    np.testing.assert_array_equal(run(engine, tokens), run(engine, tokens, sizes))


def test_batch_mates_do_not_matter(make_engine: EngineMaker) -> None:
    """Sequences of many lengths, some in prefill, some in decode, with every kind of logits."""
    engine = make_engine({"threads": 2})
    prompts = [tokens_of(size, size) for size in (3, 190, 1, 140, 17)]
    caches = [engine.new_cache(prompt.size + 1) for prompt in prompts]
    kinds = ("all", "last", "none", "all", "last")
    chunks = [Chunk(p, c, logits=kind)
              for p, c, kind in zip(prompts, caches, kinds, strict=True)]  # fmt: skip
    found = engine.forward_chunk(chunks)
    for prompt, kind, logits in zip(prompts, kinds, found, strict=True):
        rows = {"all": slice(0, None), "last": slice(-1, None), "none": slice(0, 0)}[kind]
        np.testing.assert_array_equal(logits, run(engine, prompt)[rows])
    for step, logits in enumerate(engine.forward_chunk([Chunk([7], cache) for cache in caches])):
        alone = run(engine, np.append(prompts[step], np.int32(7)))
        np.testing.assert_array_equal(logits, alone[-1:])


def test_truncated_and_cloned_caches_go_on_alike(make_engine: EngineMaker) -> None:
    engine, tokens = make_engine(), tokens_of(30)
    expected = run(engine, tokens)
    cache = engine.new_cache(30)
    engine.forward_chunk([Chunk(tokens[:20], cache)])
    copy = cache.clone()
    engine.forward_chunk([Chunk(tokens_of(5, 9), cache)])
    cache.truncate(20)
    for kept in (cache, copy):
        assert kept.length == 20
        rest = engine.forward_chunk([Chunk(tokens[20:], kept, logits="all")])[0]
        np.testing.assert_array_equal(rest, expected[20:])


class TestMask:
    """A tree of draft tokens in one chunk equals each of its paths run alone."""

    #: Parent of each node, -1 for a child of the prompt's last token.
    PARENTS = (-1, 0, 0, -1, 3, 1, 5)

    def path(self, node: int) -> list[int]:
        return [] if node < 0 else [*self.path(self.PARENTS[node]), node]

    def mask(self) -> NDArray[np.bool_]:
        size = len(self.PARENTS)
        mask = np.zeros((size, size), bool)
        for node in range(size):
            mask[node, self.path(node)] = True
        return mask

    @pytest.mark.parametrize("prompt_size", [1, 11])
    def test_each_path(self, make_engine: EngineMaker, prompt_size: int) -> None:
        engine, prompt = make_engine(EXACT), tokens_of(prompt_size)
        nodes = tokens_of(len(self.PARENTS), 5)
        depths = [len(self.path(node)) for node in range(nodes.size)]
        cache = engine.new_cache(prompt_size + nodes.size)
        engine.forward_chunk([Chunk(prompt, cache, logits="none")])
        positions = np.array(depths, np.int32) + prompt_size - 1
        found = engine.forward_chunk([Chunk(nodes, cache, positions, self.mask(), "all")])[0]
        for node in range(nodes.size):
            alone = run(engine, np.concatenate([prompt, nodes[self.path(node)]]))[-1]
            np.testing.assert_allclose(found[node], alone, atol=1e-5)

    def test_a_causal_mask_changes_nothing(self, make_engine: EngineMaker) -> None:
        engine, tokens = make_engine(EXACT), tokens_of(300)
        mask = np.tril(np.ones((300, 300), bool))
        masked = engine.forward_chunk(
            [Chunk(tokens, engine.new_cache(300), mask=mask, logits="all")]
        )[0]
        np.testing.assert_allclose(masked, run(engine, tokens), atol=1e-5)


class TestPositions:
    def test_only_differences_count(self, make_engine: EngineMaker) -> None:
        """Rotary embedding is relative: moving a whole sequence changes rounding only."""
        engine, tokens = make_engine(EXACT), tokens_of(30)
        cache = engine.new_cache(30)
        moved = engine.forward_chunk(
            [Chunk(tokens, cache, np.arange(30, dtype=np.int32) + 200, logits="all")]
        )[0]
        np.testing.assert_allclose(moved, run(engine, tokens), atol=2e-4)
        np.testing.assert_array_equal(cache.positions, np.arange(200, 230))

    def test_later_chunks_follow(self, make_engine: EngineMaker) -> None:
        engine = make_engine()
        cache = engine.new_cache(10)
        engine.forward_chunk([Chunk([1, 2], cache, np.array([5, 9]))])
        engine.forward_chunk([Chunk([3, 4], cache)])
        assert cache.positions.tolist() == [5, 9, 10, 11]

    def test_windows_are_of_positions(self, make_engine: EngineMaker) -> None:
        """A gap wider than the window hides everything before it, in blocks that have one."""
        engine = make_engine(EXACT, block_windows=(6, 6))
        tokens = tokens_of(12)
        positions = np.r_[0:6, 100:106].astype(np.int32)
        chunk = Chunk(tokens, engine.new_cache(12), positions, logits="all")
        found = engine.forward_chunk([chunk])[0]
        np.testing.assert_allclose(found[6:], run(engine, tokens[6:]), atol=2e-4)


def test_a_log_weight_stands_for_equal_entries(make_engine: EngineMaker) -> None:
    """Two equal entries at one position are one entry of weight 2 (token merging)."""
    engine = make_engine(EXACT, block_windows=(0, 0))
    twice, once = engine.new_cache(8), engine.new_cache(8)
    engine.forward_chunk([Chunk([5, 5], twice, np.array([0, 0]))])
    engine.forward_chunk([Chunk([5], once)])
    once.set_log_weights(np.log([2.0]).astype(np.float32))
    for token in (9, 4, 77):
        doubled, weighted = (
            engine.forward_chunk([Chunk([token], cache)])[0] for cache in (twice, once)
        )
        np.testing.assert_allclose(weighted, doubled, atol=1e-5)
    assert once.log_weights.tolist() == pytest.approx([np.log(2), 0, 0, 0])
    assert once.clone().log_weights.tolist() == once.log_weights.tolist()
