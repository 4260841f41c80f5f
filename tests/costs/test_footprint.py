"""The footprint is what a running engine reports, byte for byte."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import Any

import msgspec
import numpy as np
import pytest

from pliant import _native
from pliant.bits import BitPlan
from pliant.costs import EngineOptions, Step, Widths, footprint, prefill_steps, split_step
from pliant.costs.footprint import _Scratch
from pliant.errors import UsageError
from pliant.runtime import Chunk, Engine
from pliant.shape import SubnetShape
from pliant.spec import ModelSpec, Rope
from pliant.subnet import Subnet

SPEC = ModelSpec(
    architecture="llama", vocab_size=1000, hidden_size=200, num_blocks=3, num_heads=6, num_groups=3,
    head_dim=20, ffn_size=450, max_context=900, attention_scale=0.2, block_windows=(0, 40, 0),
)  # fmt: skip
CACHES = {8: "int8", 16: "float16", 32: "float32"}


def cut(spec: ModelSpec, groups: int, planes: int) -> Subnet:
    shape = SubnetShape((0, 1, 2), (groups, 1, groups), (450, 128, 320))
    return Subnet(spec, shape, BitPlan.uniform(3, planes))


def run(engine: Engine, step: Step, caches: list[Any], greedy: bool) -> None:
    """One request like `step`; a tree is given as a mask."""
    mask = None
    if step.parents is not None:
        mask = np.eye(step.tokens, dtype=bool)
        for node, parent in enumerate(step.parents):
            mask[node] |= mask[parent] if parent >= 0 else False
    tokens = np.zeros(step.tokens, np.int32)
    wanted = {0: "none", 1: "last"}.get(step.logits, "all")
    chunks = [Chunk(tokens, cache, mask=mask, logits=wanted) for cache in caches]  # type: ignore[arg-type]
    engine.greedy(chunks) if greedy else engine.forward_chunk(chunks)


def assert_equal(
    engine: Engine,
    steps: list[Step],
    cache_bits: int = 16,
    greedy: bool = False,
) -> None:
    capacity = 700
    caches = [engine.new_cache(capacity) for _ in range(max(step.sequences for step in steps))]
    for step in steps:
        run(engine, step, caches[: step.sequences], greedy)
    options = EngineOptions(threads=engine.threads, kernels=engine.kernels, greedy=greedy)
    widths = Widths.of_cache(cache_bits)
    foreseen = footprint(engine.subnet, steps, capacity, options, widths)
    reported = engine.memory()
    assert reported["mapped"] == foreseen.mapped
    assert reported["vectors"] == foreseen.vectors
    assert reported["cache"] == foreseen.cache
    assert foreseen.scratch == max(possible_scratch(engine.subnet, steps, options, widths))
    assert reported["scratch"] in possible_scratch(engine.subnet, steps, options, widths)


def possible_scratch(
    subnet: Subnet, steps: list[Step], options: EngineOptions, widths: Widths
) -> set[int]:
    """Scratch where any of the steps were run by one worker: engines do so on a busy machine."""
    parts = [part for step in steps for part in split_step(step)]

    class Alone(_Scratch):
        alone: tuple[Step, ...] = ()

        def _workers(self, step: Step) -> int:
            return 1 if step in self.alone else super()._workers(step)

    found = set()
    for count in range(len(parts) + 1 if options.threads > 1 else 1):
        for alone in combinations(parts, count):
            scratch = Alone(subnet, parts, options, widths.cache)
            scratch.alone = alone
            found.add(scratch.num_bytes())
    return found


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 3])
def test_prompts_and_decoding(
    random_weights: Callable[..., Any], threads: int, groups: int
) -> None:
    for planes, tokens in ((1, 1), (4, 7), (8, 300)):
        subnet = cut(SPEC, groups, planes)
        with Engine(random_weights(SPEC), subnet, threads) as engine:
            assert_equal(engine, [*prefill_steps(tokens, 130), Step.decode(tokens)])


def test_long_requests_are_split_as_the_engine_splits_them(
    random_weights: Callable[..., Any],
) -> None:
    with Engine(random_weights(SPEC), cut(SPEC, 2, 3), 2) as engine:
        assert_equal(engine, [Step(tokens=600, logits=600)])


@pytest.mark.parametrize("bits", [8, 16, 32])
def test_batches_trees_and_caches(random_weights: Callable[..., Any], bits: int) -> None:
    artifact, subnet = random_weights(SPEC), cut(SPEC, 3, 2)
    with Engine(artifact, subnet, 2, cache_type=CACHES[bits]) as engine:  # type: ignore[arg-type]
        assert_equal(engine, [Step(tokens=5, sequences=3)], bits)
    with Engine(artifact, subnet, 2, cache_type=CACHES[bits]) as engine:  # type: ignore[arg-type]
        tree = Step.verify((-1, 0, 0, 1, -1), 9)
        assert_equal(engine, [Step(tokens=9), tree], bits)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("bits", [4, 2])
def test_coded_caches(random_weights: Callable[..., Any], threads: int, bits: int) -> None:
    """Units attend one after another, and each worker decodes one at a time."""
    artifact, subnet = random_weights(SPEC), cut(SPEC, 3, 2)
    for steps in (
        [Step(tokens=300)],
        [Step(tokens=90), Step(tokens=1, cached=90)],
        [Step(tokens=400), Step(tokens=7, cached=400), Step(tokens=1, cached=407)],
    ):
        with Engine(artifact, subnet, threads, cache_type=f"int{bits}") as engine:  # type: ignore[arg-type]
            assert_equal(engine, steps, cache_bits=bits)


@pytest.mark.parametrize("screen", [0, 3])
def test_choosing_tokens_keeps_scores(random_weights: Callable[..., Any], screen: int) -> None:
    subnet = Subnet.full(SPEC, 6)
    with Engine(random_weights(SPEC), subnet, 2, head_screen=screen) as engine:
        assert_equal(engine, [Step(tokens=4, logits=4)], greedy=True)


def test_several_rotations(random_weights: Callable[..., Any]) -> None:
    ropes = (Rope(), Rope(base=1000.0))
    spec = msgspec.structs.replace(SPEC, ropes=ropes, block_ropes=(0, 1, -1))
    with Engine(random_weights(spec), Subnet.full(spec, 2), 2) as engine:
        assert_equal(engine, [Step(tokens=20)])


@pytest.mark.parametrize("path", _native.kernels.paths())
def test_every_kernel_path(
    random_weights: Callable[..., Any], path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLIANT_ISA", path)
    with Engine(random_weights(SPEC), cut(SPEC, 3, 4), 2) as engine:
        if engine.kernels != path:
            pytest.skip("the path is chosen once in a process")
        assert_equal(engine, [Step(tokens=33), Step.decode(33)])


def test_small_models_run_alone(random_weights: Callable[..., Any]) -> None:
    spec = ModelSpec(
        architecture="llama", vocab_size=64, hidden_size=32, num_blocks=1, num_heads=2,
        num_groups=1, head_dim=16, ffn_size=64, max_context=900, attention_scale=0.25,
    )  # fmt: skip
    with Engine(random_weights(spec), Subnet.full(spec), 2) as engine:
        assert_equal(engine, [Step(tokens=2), Step.decode(2)])


def test_paths_that_are_unknown() -> None:
    with pytest.raises(UsageError, match="abacus"):
        EngineOptions(kernels="abacus")
    empty = footprint(Subnet.full(SPEC), [], 10)
    assert (empty.cache, empty.scratch) == (0, 0)
    assert empty.total == Subnet.full(SPEC).weight_bytes
