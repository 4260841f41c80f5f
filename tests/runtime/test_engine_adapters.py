"""The engine adds the update of a shape in decoding and prefill, as the supernet does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from pliant.adapters import AdapterSpec, Factors, low_rank_bytes
from pliant.bits import BitPlan
from pliant.costs import WorkingSet, subnet_memory
from pliant.errors import UsageError
from pliant.models import Supernet
from pliant.runtime import Chunk, Engine
from pliant.runtime.low_rank import decode_factors, encode_factors
from pliant.shape import SubnetShape
from pliant.spec import ModelSpec
from pliant.subnet import Subnet

SPEC = ModelSpec(
    architecture="llama", vocab_size=131, hidden_size=40, num_blocks=3, num_heads=6, num_groups=3,
    head_dim=12, ffn_size=150, max_context=64, attention_scale=12**-0.5, qkv_bias=True,
)  # fmt: skip
SHAPES = (
    SubnetShape.full(SPEC),
    SubnetShape((0, 2), (2, 1), (64, 100)),
    SubnetShape((1,), (1,), (33,)),
)
TOKENS = np.arange(1, 25, dtype=np.int32) * 5


class Adapted:
    """An artifact in memory with random adapters; those of a shape depend on its depth."""

    def __init__(self, source: Any, rank: int) -> None:
        self.spec = source.spec
        self.planes, self.scales, self.vector = source.planes, source.scales, source.vector
        self.adapters = AdapterSpec(rank, experts=1, top_k=1)

    def low_rank(self, shape: SubnetShape) -> Callable[[str, int, int], Factors]:
        def update(name: str, rows: int, columns: int) -> Factors:
            full_rows, full_columns = self.spec.tensors()[name]
            seed = [len(shape.blocks), *name.encode()]
            draw = np.random.default_rng(seed)
            rank = self.adapters.rank
            a_RI = draw.normal(0, full_columns**-0.5, (rank, full_columns)).astype(np.float32)
            b_OR = draw.normal(0, 0.3, (full_rows, rank)).astype(np.float32)
            return Factors(a_RI[:, :columns], b_OR[:rows])

        return update


@pytest.fixture(params=[3, 16], scope="module")
def adapted(request: pytest.FixtureRequest, memory_artifact: Callable[..., Any]) -> Adapted:
    return Adapted(memory_artifact(SPEC), request.param)


def subnet_of(shape: SubnetShape, planes: int = 8) -> Subnet:
    return Subnet(SPEC, shape, BitPlan.uniform(len(shape.blocks), planes, 8))


def reference(adapted: Adapted, source: Any, shape: SubnetShape) -> np.ndarray:
    """Logits of the supernet with the planes and the factors that the engine computes with."""
    weights = {
        name: torch.from_numpy(source.dequantized(name, 8) if len(size) == 2 else
                               source.vector(name).copy())
        for name, size in SPEC.tensors().items()
    }  # fmt: skip
    model = Supernet.from_tensors(SPEC, weights)
    update = adapted.low_rank(shape)
    low_rank = {}
    for cut in subnet_of(shape).matrices():
        if cut.name.startswith("blocks."):
            factors = decode_factors(encode_factors(update(cut.name, cut.rows, cut.columns)))
            low_rank[cut.name] = tuple(map(torch.from_numpy, factors))
    model.low_rank = low_rank
    with torch.no_grad():
        return model(torch.from_numpy(TOKENS.astype(np.int64))[None], shape)[0].numpy()


def run(engine: Engine, sizes: tuple[int, ...]) -> np.ndarray:
    cache, begin, rows = engine.new_cache(64), 0, []
    for size in sizes:
        chunk = Chunk(TOKENS[begin : begin + size], cache, logits="all")
        rows.append(engine.forward_chunk([chunk])[0])
        begin += size
    return np.concatenate(rows)


@pytest.mark.parametrize("shape", SHAPES)
def test_exact_activations_give_the_logits_of_the_supernet(
    adapted: Adapted, memory_artifact: Callable[..., Any], shape: SubnetShape
) -> None:
    source = memory_artifact(SPEC)
    expected = reference(adapted, source, shape)
    for sizes in ((24,), (20, *[1] * 4)):
        with Engine(adapted, subnet_of(shape), 2, "float32", "float32") as engine:
            assert engine.adapter_rank == adapted.adapters.rank
            np.testing.assert_allclose(run(engine, sizes), expected, rtol=0, atol=2e-4)
    with Engine(source, subnet_of(shape), 1, "float32", "float32") as plain:
        assert plain.adapter_rank == 0
        assert np.abs(run(plain, (24,)) - expected).max() > 0.1


@pytest.mark.parametrize("shape", SHAPES)
def test_rounded_activations_stay_close_and_threads_and_chunks_change_no_bit(
    adapted: Adapted, memory_artifact: Callable[..., Any], shape: SubnetShape
) -> None:
    results = []
    for threads in (1, 2, 3):
        for sizes in ((24,), (1, 2, 5, 15, 1), (8, 16)):
            with Engine(adapted, subnet_of(shape), threads) as engine:
                results.append(run(engine, sizes))
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])
    expected = reference(adapted, memory_artifact(SPEC), shape)
    spread = expected.std()
    # int8 activations: their error is some hundredths of the logits' spread.
    assert np.abs(results[0] - expected).mean() < 0.05 * spread


def test_greedy_and_batches_see_the_same_model(adapted: Adapted) -> None:
    with Engine(adapted, subnet_of(SHAPES[1]), 2) as engine:
        alone = run(engine, (24,))
        caches = [engine.new_cache(64) for _ in range(2)]
        both = engine.forward_chunk([Chunk(TOKENS, cache, logits="all") for cache in caches])
        chosen = engine.greedy([Chunk(TOKENS, engine.new_cache(64), logits="all")])[0]
    for found in both:
        np.testing.assert_array_equal(found, alone)
    np.testing.assert_array_equal(chosen, alone.argmax(axis=1))


def test_an_engine_switches_to_the_spared_full_shape_and_back(
    adapted: Adapted, memory_artifact: Callable[..., Any]
) -> None:
    class Anchored(Adapted):
        def low_rank(self, shape: SubnetShape) -> Callable[[str, int, int], Factors] | None:
            return None if shape == SHAPES[0] else super().low_rank(shape)

    source = memory_artifact(SPEC)
    anchored = Anchored(source, adapted.adapters.rank)
    anchored.adapters = AdapterSpec(anchored.adapters.rank, experts=1, top_k=1, anchored=True)
    full, cut = subnet_of(SHAPES[0]), subnet_of(SHAPES[1])
    with Engine(source, full, 2) as plain, Engine(adapted, cut, 2) as other:
        expected = {full: run(plain, (24,)), cut: run(other, (24,))}
    with Engine(anchored, full, 2) as engine:
        for subnet in (full, cut, full):
            engine.switch(subnet)
            assert engine.adapter_rank == (0 if subnet is full else anchored.adapters.rank)
            assert (engine.memory()["adapters"] > 0) == (subnet is cut)
            np.testing.assert_array_equal(run(engine, (24,)), expected[subnet])


def test_memory_is_what_was_predicted(adapted: Adapted) -> None:
    for shape in SHAPES:
        subnet, rank = subnet_of(shape), adapted.adapters.rank
        with Engine(adapted, subnet, 1) as engine:
            held = engine.memory()["adapters"]
        assert held == low_rank_bytes(SPEC, shape, rank)
        cost = subnet_memory(subnet, WorkingSet(context=8), rank)
        plain = subnet_memory(subnet, WorkingSet(context=8))
        assert cost.adapter_bytes == held
        assert cost.total_bytes > plain.total_bytes + held


def test_factors_of_another_size_are_refused(adapted: Adapted) -> None:
    class Misshapen(Adapted):
        def low_rank(self, shape: SubnetShape) -> Callable[[str, int, int], Factors]:
            update = super().low_rank(shape)

            def wrong(name: str, rows: int, columns: int) -> Factors:
                return update(name, rows - (name == "blocks.1.up"), columns)

            return wrong

    source = Misshapen(adapted, 3)
    with pytest.raises(UsageError, match=r"adapter of blocks\.1\.up is for 149 x 40"):
        Engine(source, subnet_of(SHAPES[0]))
