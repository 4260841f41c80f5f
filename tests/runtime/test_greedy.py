"""The likeliest token without logits, and the head screened by its first planes: always exact."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pliant.bits import BitPlan
from pliant.errors import GenerationError, UsageError
from pliant.runtime import Chunk, Engine, SamplingOptions, Tokenizer, generate_batch
from pliant.shape import SubnetShape
from pliant.spec import ModelSpec
from pliant.subnet import Subnet

EngineMaker = Callable[..., Engine]

SPEC = ModelSpec(
    architecture="llama", vocab_size=517, hidden_size=72, num_blocks=1, num_heads=3, num_groups=3,
    head_dim=12, ffn_size=96, max_context=400, attention_scale=12**-0.5,
)  # fmt: skip


def subnet(head_planes: int) -> Subnet:
    blocks = BitPlan.uniform(1, 4, 4).blocks
    return Subnet(SPEC, SubnetShape.full(SPEC), BitPlan(4, head_planes, blocks))


def tokens_of(count: int, seed: int = 0) -> NDArray[np.int32]:
    return np.random.default_rng(seed).integers(0, SPEC.vocab_size, count, np.int32)


@pytest.mark.parametrize("options", [{}, {"activations": "float32"}, {"cache_type": "int8"}])
@pytest.mark.parametrize("logit_softcap", [0.0, 5.0, 1e-3])
def test_greedy_is_the_argmax_of_the_logits(
    make_engine: EngineMaker, options: dict[str, Any], logit_softcap: float
) -> None:
    engine = make_engine({"threads": 2, **options}, logit_softcap=logit_softcap)
    tokens = np.random.default_rng(0).integers(0, 131, 300, np.int32)
    logits = engine.forward_chunk([Chunk(tokens, engine.new_cache(300), logits="all")])[0]
    found = engine.greedy([Chunk(tokens, engine.new_cache(300), logits="all")])[0]
    np.testing.assert_array_equal(found, logits.argmax(axis=1))
    assert engine.screening().saved == 0


@pytest.mark.parametrize("head_planes", [2, 4, 8])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_screened_tokens_are_the_same(
    memory_artifact: Callable[..., Any], head_planes: int, threads: int
) -> None:
    """Every number of planes to screen with, long steps and single tokens, any threads."""
    artifact = memory_artifact(SPEC)
    tokens = tokens_of(330)
    plain = Engine(artifact, subnet(head_planes), threads)
    expected = plain.forward_chunk([Chunk(tokens, plain.new_cache(400), logits="all")])[0]
    for screen in range(1, head_planes + 1):
        with Engine(artifact, subnet(head_planes), threads, head_screen=screen) as engine:
            cache = engine.new_cache(400)
            found = [engine.greedy([Chunk(tokens[:300], cache, logits="all")])[0]]
            found += [engine.greedy([Chunk(tokens[i : i + 1], cache)])[0] for i in range(300, 330)]
            np.testing.assert_array_equal(np.concatenate(found), expected.argmax(axis=1))
            report = engine.screening()
            assert report.tokens == 330
            # Most planes are needed for all, the last ones for few tiles of 32 tokens.
            assert 0 < report.read_bytes <= report.unscreened_bytes
            if screen == head_planes - 1 >= 7:
                assert report.saved > 0.05


class Twins:
    """An artifact whose head has each of its first tokens once more, far behind."""

    def __init__(self, source: Any) -> None:
        self.spec = source.spec
        self.vector = source.vector
        self._source = source

    def planes(self, name: str) -> list[NDArray[np.uint8]]:
        planes: list[NDArray[np.uint8]] = self._source.planes(name)
        return [self._doubled(plane) for plane in planes] if name == "head" else planes

    def scales(self, name: str) -> NDArray[np.uint16]:
        scales: NDArray[np.uint16] = self._source.scales(name)
        return self._doubled(scales) if name == "head" else scales

    @staticmethod
    def _doubled(tiles: NDArray[Any]) -> NDArray[Any]:
        by_tile = tiles.reshape(-(-SPEC.vocab_size // 32), -1).copy()
        by_tile[8:16] = by_tile[:8]
        return by_tile.reshape(-1)


@pytest.mark.parametrize("screen", [0, 5, 7])
def test_the_lowest_of_equals_wins(memory_artifact: Callable[..., Any], screen: int) -> None:
    artifact = Twins(memory_artifact(SPEC))
    with Engine(artifact, subnet(8), 2, head_screen=screen) as engine:
        tokens = tokens_of(200, 3)
        found = engine.greedy([Chunk(tokens, engine.new_cache(200), logits="all")])[0]
        logits = engine.forward_chunk([Chunk(tokens, engine.new_cache(200), logits="all")])[0]
    assert (logits[:, :256] == logits[:, 256:512]).all()
    np.testing.assert_array_equal(found, logits.argmax(axis=1))


def test_batches_and_kinds_of_logits(memory_artifact: Callable[..., Any]) -> None:
    with Engine(memory_artifact(SPEC), subnet(8), 2, head_screen=6) as engine:
        parts = [tokens_of(size, size) for size in (3, 40, 1)]
        kinds = ("all", "none", "last")
        chunks = [
            Chunk(part, engine.new_cache(50), logits=kind)
            for part, kind in zip(parts, kinds, strict=True)
        ]
        found = engine.greedy(chunks)
        assert [part.size for part in found] == [3, 0, 1]
        for part, kind, chosen in zip(parts, kinds, found, strict=True):
            again = Chunk(part, engine.new_cache(50), logits=kind)
            logits = engine.forward_chunk([again])[0]
            np.testing.assert_array_equal(chosen, logits.argmax(axis=1) if kind != "none" else [])


@pytest.mark.parametrize("screen", [0, 6])
def test_broken_logits_are_refused(memory_artifact: Callable[..., Any], screen: int) -> None:
    source = memory_artifact(SPEC)

    class Broken:
        spec = SPEC
        planes, scales = source.planes, source.scales

        def vector(self, name: str) -> Any:
            return np.full_like(source.vector(name), np.nan) if name == "final_norm" else (
                source.vector(name)
            )  # fmt: skip

    with Engine(Broken(), subnet(8), 2, head_screen=screen) as engine:
        cache = engine.new_cache(4)
        with pytest.raises(GenerationError, match="NaN or infinite"):
            engine.greedy([Chunk([1, 2], cache)])
        assert cache.length == 0


def test_screens_that_cannot_be(make_engine: EngineMaker) -> None:
    for screen in (-1, 9, 10_000):
        with pytest.raises(UsageError, match="0 to 8 planes"):
            make_engine({"head_screen": screen})
    with pytest.raises(UsageError, match="int8 activations"):
        make_engine({"head_screen": 3, "activations": "float32"})
    with pytest.raises(UsageError, match="soft cap"):
        make_engine({"head_screen": 3}, logit_softcap=10.0)


def test_requests_that_cannot_be(make_engine: EngineMaker) -> None:
    engine = make_engine()
    with pytest.raises(UsageError, match="batch is empty"):
        engine.greedy([])
    with pytest.raises(UsageError, match="is no cache"):
        engine.greedy([Chunk([1], None)])


def test_generation_with_a_screened_head_reads_the_same(
    memory_artifact: Callable[..., Any], tokenizer: Tokenizer
) -> None:
    """Alone, in a batch with other greedy texts, and beside one that draws."""
    artifact = memory_artifact(SPEC)
    plain, screened = (Engine(artifact, subnet(8), 1, head_screen=k) for k in (0, 6))
    options = SamplingOptions(max_tokens=40)
    drawn = SamplingOptions(max_tokens=40, temperature=0.7, seed=3)
    prompts: list[Sequence[int]] = [[1, 5, 9], [7], [3] * 150]
    for chosen in (options, [options, drawn, options]):
        expected, found = (
            generate_batch(engine, tokenizer, prompts, chosen) for engine in (plain, screened)
        )
        assert [text.tokens for text in found] == [text.tokens for text in expected]
    assert plain.screening().tokens == 0
    assert screened.screening().tokens >= 3 * 40
