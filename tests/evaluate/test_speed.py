"""Speeds are counts over seconds, and bytes are those of the subnet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pliant.costs import decode_traffic
from pliant.errors import UsageError
from pliant.evaluate import measure_speed
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
    """Time that passes by one second per forward call."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def __call__(self) -> float:
        return float(len(self._model.rows))


def test_rates(make_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(max_context=400)
    monkeypatch.setattr("pliant.evaluate.speed.time.perf_counter", SteppingClock(model))
    subnet = Subnet.full(SPEC, planes=3)
    found = measure_speed(
        model, subnet, prompt_tokens=300, decode_tokens=10, runs=4, conditions="a test"
    )
    # Three calls read 300 tokens, one call decodes each token.
    assert found.prefill.median == found.prefill.low == found.prefill.high == 100
    assert found.first_token.median == 3
    assert found.decode.median == 1
    assert found.decode.n == 4
    assert found.bytes_per_token == decode_traffic(subnet, 305).total_bytes
    assert found.bandwidth.median == pytest.approx(found.bytes_per_token / 1e9)
    assert "token/s" in str(found.decode) and "a test" in str(found.decode)
    # One more run than asked for warms up.
    assert len(model.rows) == 5 * 13


@pytest.mark.parametrize("counts", [(0, 1, 1), (1, 0, 1), (1, 1, 0), (60, 5, 1)], ids=str)
def test_counts_that_cannot_be(model: Any, counts: tuple[int, int, int]) -> None:
    prompt, decode, runs = counts
    with pytest.raises(UsageError, match="asked for"):
        measure_speed(
            model, Subnet.full(SPEC), prompt_tokens=prompt, decode_tokens=decode, runs=runs
        )
