"""Speeds are counts over seconds, bytes are those of the subnet, and nobody is always first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pliant.costs import decode_traffic
from pliant.errors import UsageError
from pliant.evaluate import Runner, Workload, measure_speed, measure_speeds
from pliant.spec import ModelSpec
from pliant.subnet import Subnet

SPEC = ModelSpec(
    architecture="llama",
    vocab_size=257,
    hidden_size=64,
    num_blocks=2,
    num_heads=2,
    num_groups=1,
    head_dim=32,
    ffn_size=128,
    max_context=64,
    attention_scale=32**-0.5,
    tied_embeddings=True,
)


class SteppingClock:
    """Time that passes by one second per forward call of any of the models."""

    def __init__(self, *models: Any) -> None:
        self._models = models

    def __call__(self) -> float:
        return float(sum(len(model.rows) for model in self._models))


def test_rates(make_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(max_context=400)
    monkeypatch.setattr("pliant.evaluate.speed.time.perf_counter", SteppingClock(model))
    subnet = Subnet.full(SPEC, planes=3)
    workload = Workload(prompt_tokens=300, decode_tokens=10, repeats=4)
    found = measure_speed(model, subnet, workload, conditions="a test")
    # Three calls read 300 tokens, one call decodes each token.
    assert found.prefill.median == found.prefill.low == found.prefill.high == 100
    assert found.first_token.median == 3
    assert found.decode.median == 1
    assert found.decode.n == 4
    traffic = decode_traffic(subnet, 305)
    assert (found.weight_bytes, found.cache_bytes) == (traffic.weight_bytes, traffic.cache_bytes)
    assert found.bytes_per_token == traffic.total_bytes
    assert found.bandwidth.median == pytest.approx(found.bytes_per_token / 1e9)
    assert "token/s" in str(found.decode) and "a test" in str(found.decode)
    # One more run than asked for warms up.
    assert len(model.rows) == 5 * 13


def test_runners_take_turns_and_turn_round(make_model: Callable[..., Any]) -> None:
    models = {name: make_model() for name in "abc"}
    order: list[str] = []

    def note(name: str) -> int:
        order.append(name)
        return 100 + len(order)

    def runner(name: str) -> Runner:
        return Runner(models[name], Subnet.full(SPEC), memory=lambda: note(name))

    rounds: list[int] = []
    steps: list[tuple[str, int, int]] = []
    speeds = measure_speeds(
        [runner(name) for name in "abc"],
        Workload(prompt_tokens=2, decode_tokens=1, repeats=2),
        progress=lambda *step: steps.append(step),
        after_round=rounds.append,
    )
    assert "".join(order) == "abccbaabc"
    assert rounds == [0, 1, 2]
    assert steps[-1] == ("measuring speed", 9, 9)
    # The largest of the runs that count: c ran fourth and ninth, a sixth and seventh.
    assert [speed.memory_bytes for speed in speeds] == [107, 108, 109]


@pytest.mark.parametrize("counts", [(0, 1, 1), (1, 0, 1), (1, 1, 0), (-3, 1, 1)], ids=str)
def test_workloads_that_cannot_be(counts: tuple[int, int, int]) -> None:
    prompt, decode, repeats = counts
    with pytest.raises(UsageError, match="asked for"):
        Workload(prompt_tokens=prompt, decode_tokens=decode, repeats=repeats)


def test_a_workload_beyond_the_context_is_refused_before_anything_runs(model: Any) -> None:
    workload = Workload(prompt_tokens=60, decode_tokens=5)
    with pytest.raises(UsageError, match="context is 64"):
        measure_speed(model, Subnet.full(SPEC), workload)
    assert model.rows == []
