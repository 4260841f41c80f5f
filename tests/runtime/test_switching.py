"""A running engine goes on as another subnet: just as a fresh one, or with the entries it has."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pliant.bits import BitPlan
from pliant.bits.cache import bits_of
from pliant.errors import GenerationError, OutOfSpaceError, UsageError
from pliant.runtime import Chunk, Engine
from pliant.runtime.switching import new_bytes, outcome_of
from pliant.shape import SubnetShape
from pliant.spec import ModelSpec
from pliant.subnet import Subnet

SPEC = ModelSpec(
    architecture="llama", vocab_size=131, hidden_size=40, num_blocks=3, num_heads=6, num_groups=3,
    head_dim=12, ffn_size=150, max_context=600, attention_scale=12**-0.5, block_windows=(6, 0, 0),
)  # fmt: skip
TOKENS = np.random.default_rng(3).integers(0, SPEC.vocab_size, 300, np.int32)


def subnet(shape: SubnetShape | None = None, planes: int = 8) -> Subnet:
    shape = shape or SubnetShape.full(SPEC)
    plan = BitPlan.uniform(len(shape.blocks), planes, 8)
    return Subnet(SPEC, shape, plan)


FULL = subnet()
CUTS = {
    "full": FULL,
    "coarse": subnet(planes=3),
    "shallow": subnet(SubnetShape((0, 2), (3, 3), (150, 150))),
    "first blocks": subnet(SubnetShape((0, 1), (3, 3), (150, 150))),
    "narrow": subnet(SubnetShape((0, 1, 2), (2, 2, 2), (64, 64, 64)), planes=5),
    "halves": subnet(SubnetShape((0, 1, 2), (0, 3, 2), (150, 0, 150))),
}


@pytest.fixture
def open_engine(memory_artifact: Callable[..., Any]) -> Callable[..., Engine]:
    def make(subnet: Subnet, **options: Any) -> Engine:
        return Engine(memory_artifact(SPEC), subnet, **{"threads": 1, **options})

    return make


def greedy(engine: Engine, cache: Any, token: int, count: int = 12) -> list[int]:
    """The next tokens behind `token`, each the likeliest."""
    found = [token]
    for _ in range(count):
        chunk = Chunk(np.array(found[-1:], np.int32), cache)
        found.append(int(engine.greedy([chunk])[0][0]))
    return found[1:]


def fed(engine: Engine, tokens: NDArray[np.int32], capacity: int = 400) -> Any:
    cache = engine.new_cache(capacity)
    engine.forward_chunk([Chunk(tokens, cache, logits="none")])
    return cache


@pytest.mark.parametrize(
    ("before", "after", "cache_type"),
    [(*pair, "float16") for pair in itertools.permutations(CUTS, 2)]
    + [("full", "narrow", "int8"), ("halves", "full", "int8")],
)
def test_an_exact_switch_goes_on_as_a_fresh_engine(
    before: str, after: str, cache_type: str, open_engine: Callable[..., Engine]
) -> None:
    engine = open_engine(CUTS[before], cache_type=cache_type)
    long, short = fed(engine, TOKENS), fed(engine, TOKENS[:5])
    empty, copy = engine.new_cache(30), short.clone()
    made = engine.switch(CUTS[after], entries="exact")
    bits = bits_of(cache_type)
    expected = (CUTS[before].with_cache(bits), CUTS[after].with_cache(bits))
    assert (made.before, made.after) == expected == (made.before, engine.subnet)
    assert (made.caches, made.tokens) == (4, 310)
    fresh = open_engine(CUTS[after], cache_type=cache_type)
    for cache, tokens in ((long, TOKENS), (short, TOKENS[:5]), (copy, TOKENS[:5])):
        assert cache.capacity == 400
        np.testing.assert_array_equal(cache.tokens, tokens)
        assert greedy(engine, cache, 7) == greedy(fresh, fed(fresh, tokens), 7)
    assert greedy(engine, empty, 9) == greedy(fresh, fresh.new_cache(30), 9)
    assert engine.memory()["cache"] == sum(c.num_bytes for c in (long, short, empty, copy))


def test_kept_entries_are_those_of_the_subnet_before(open_engine: Callable[..., Engine]) -> None:
    """What follows a kept cache is what the new subnet makes of old keys and values: for one that
    differs in its bits alone, what it makes when all cached tokens but the last ran at other bits.
    """
    engine, other = open_engine(FULL), open_engine(FULL)
    cache, expected = fed(engine, TOKENS), fed(other, TOKENS)
    made = engine.switch(CUTS["coarse"])
    assert made.outcome == "kept"
    np.testing.assert_array_equal(cache.positions, expected.positions)
    assert greedy(engine, cache, 7) != greedy(other, expected, 7)  # another model goes on
    # back before anything was added: all entries are as they were
    engine = open_engine(FULL)
    cache = fed(engine, TOKENS)
    engine.switch(CUTS["coarse"])
    assert engine.switch(FULL).outcome == "kept"
    assert greedy(engine, cache, 7) == greedy(other, fed(other, TOKENS), 7)


def test_a_narrower_cache_holds_the_first_groups(open_engine: Callable[..., Engine]) -> None:
    """Groups kept in a switch equal those of a fresh engine where nothing below them differs."""
    first_only = subnet(SubnetShape((0,), (2,), (150,)))
    engine, fresh = open_engine(FULL), open_engine(first_only)
    cache = fed(engine, TOKENS)
    made = engine.switch(first_only)
    assert made.outcome == "same"
    assert greedy(engine, cache, 7) == greedy(fresh, fed(fresh, TOKENS), 7)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("full", "full", "same"),
        ("full", "first blocks", "same"),
        ("first blocks", "full", "rebuilt"),
        ("full", "coarse", "kept"),
        ("coarse", "full", "kept"),
        ("full", "shallow", "kept"),
        ("shallow", "full", "rebuilt"),
        ("full", "narrow", "kept"),
        ("narrow", "full", "rebuilt"),
        ("full", "halves", "kept"),
        ("halves", "coarse", "rebuilt"),
    ],
)
def test_outcomes(before: str, after: str, expected: str) -> None:
    assert outcome_of(CUTS[before], CUTS[after], "keep") == expected
    exact = outcome_of(CUTS[before], CUTS[after], "exact")
    assert exact == ("same" if expected == "same" else "rebuilt")


def test_only_what_decides_keys_and_values_counts() -> None:
    head_only = Subnet(SPEC, FULL.shape, BitPlan(8, 3, FULL.bits.blocks))
    assert outcome_of(FULL, head_only, "exact") == "same"
    finer_embedding = Subnet(SPEC, FULL.shape, BitPlan(6, 8, FULL.bits.blocks))
    assert outcome_of(FULL, finer_embedding, "exact") == "rebuilt"
    last_mlp = subnet(SubnetShape((0, 1, 2), (3, 3, 3), (150, 150, 64)))
    assert outcome_of(FULL, last_mlp, "exact") == "same"


def test_new_bytes_are_those_not_read_before() -> None:
    for before, after in itertools.permutations(CUTS.values(), 2):
        assert 0 <= new_bytes(before, after) <= after.weight_bytes
    assert new_bytes(FULL, CUTS["narrow"]) == 0
    missing = new_bytes(CUTS["coarse"], FULL)
    block_planes = sum(
        cut.num_bytes for cut in FULL.matrices() if cut.name.startswith("blocks")
    ) - sum(cut.num_bytes for cut in CUTS["coarse"].matrices() if cut.name.startswith("blocks"))
    assert missing == block_planes


def test_a_switch_of_nothing_alive(open_engine: Callable[..., Engine]) -> None:
    engine = open_engine(FULL)
    fed(engine, TOKENS)  # given back at once
    made = engine.switch(CUTS["shallow"])
    assert (made.caches, made.tokens) == (0, 0)
    assert "0 cached tokens" in str(made)
    assert engine.memory()["cache"] == 0


def test_positions_stay(open_engine: Callable[..., Engine]) -> None:
    engine, fresh = open_engine(CUTS["shallow"]), open_engine(FULL)
    positions = np.array([0, 1, 5, 9, 10], np.int32)
    caches = [made.new_cache(40) for made in (engine, fresh)]
    for made, cache in zip((engine, fresh), caches, strict=True):
        made.forward_chunk([Chunk(TOKENS[:5], cache, positions=positions, logits="none")])
    assert engine.switch(FULL).outcome == "rebuilt"
    np.testing.assert_array_equal(caches[0].positions, positions)
    assert greedy(engine, caches[0], 7) == greedy(fresh, caches[1], 7)


def test_refused_switches_change_nothing(
    open_engine: Callable[..., Engine], memory_artifact: Callable[..., Any]
) -> None:
    engine, fresh = open_engine(CUTS["shallow"]), open_engine(CUTS["shallow"])
    cache = fed(engine, TOKENS)
    other_model = ModelSpec(**{**_fields(SPEC), "ffn_size": 151})
    refused: Sequence[tuple[Any, dict[str, Any], type[Exception], str]] = [
        (Subnet.full(other_model), {}, UsageError, "another model"),
        (FULL, {"entries": "some"}, UsageError, "keep or exact"),
    ]
    for asked, options, error, message in refused:
        with pytest.raises(error, match=message):
            engine.switch(asked, **options)
    cache.set_log_weights(np.ones(300, np.float32))
    with pytest.raises(GenerationError, match="merged entries"):
        engine.switch(FULL)
    cache.set_log_weights(np.zeros(300, np.float32))
    assert engine.subnet == CUTS["shallow"]
    assert greedy(engine, cache, 7) == greedy(fresh, fed(fresh, TOKENS), 7)


def test_merged_entries_may_be_kept(open_engine: Callable[..., Engine]) -> None:
    engine = open_engine(FULL)
    cache = fed(engine, TOKENS)
    weights = np.linspace(0, 1, 300, dtype=np.float32)
    cache.set_log_weights(weights)
    assert engine.switch(CUTS["shallow"]).outcome == "kept"
    np.testing.assert_array_equal(cache.log_weights, weights)


def test_a_limit_of_bytes_holds_after_a_switch(open_engine: Callable[..., Engine]) -> None:
    engine = open_engine(CUTS["shallow"])
    limit = engine.new_cache(10).num_bytes
    cache = engine.new_cache(400, max_bytes=limit)
    engine.forward_chunk([Chunk(TOKENS[:9], cache, logits="none")])
    with pytest.raises(GenerationError, match="limit"):
        engine.switch(FULL)
    assert (cache.length, cache.capacity) == (9, 10)
    cache.truncate(4)
    engine.switch(FULL)
    assert cache.num_bytes <= limit
    assert (cache.length, cache.capacity) == (4, 6)


def test_threads_take_turns_with_a_switch(open_engine: Callable[..., Engine]) -> None:
    """A switch waits for the passes of other threads and breaks none of their texts."""
    engine = open_engine(FULL)
    failures: list[Exception] = []

    def work() -> None:
        try:
            for _ in range(20):
                greedy(engine, fed(engine, TOKENS[:40]), 7, 4)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for cut in itertools.islice(itertools.cycle(("shallow", "full", "coarse")), 60):
        engine.switch(CUTS[cut], entries="exact")
    for thread in threads:
        thread.join()
    assert not failures
    assert engine.memory()["cache"] == 0


def test_closed_engines_do_not_switch(open_engine: Callable[..., Engine]) -> None:
    engine = open_engine(FULL)
    engine.close()
    with pytest.raises(UsageError, match="closed"):
        engine.switch(CUTS["narrow"])


def test_locked_pages_of_the_next_subnet_stay_locked(open_engine: Callable[..., Engine]) -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("this system does not say how much is locked")
    try:
        engine = open_engine(FULL, preload="lock")
    except OutOfSpaceError:
        pytest.skip("this process may not lock memory")
    locked = _locked_kib()
    assert locked > 0
    engine.switch(CUTS["coarse"])
    assert 0 < _locked_kib() <= locked
    engine.switch(FULL)
    assert _locked_kib() == locked
    engine.close()
    assert _locked_kib() < locked


def _locked_kib() -> int:
    status = Path("/proc/self/status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmLck"))


def _fields(spec: ModelSpec) -> dict[str, Any]:
    return {name: getattr(spec, name) for name in spec.__struct_fields__}


@pytest.mark.parametrize("cut", CUTS)
def test_an_engine_maps_what_its_subnet_counts(
    cut: str, open_engine: Callable[..., Engine]
) -> None:
    memory = open_engine(CUTS[cut]).memory()
    matrices = sum(matrix.num_bytes for matrix in CUTS[cut].matrices())
    assert memory["mapped"] + memory["vectors"] == CUTS[cut].weight_bytes
    assert memory["mapped"] == matrices
