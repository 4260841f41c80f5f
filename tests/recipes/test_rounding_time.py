"""Time is foretold from small parts; what is tested is how it grows, never how long it is."""

from __future__ import annotations

import msgspec
import pytest

from pliant.recipes import rounding_time
from pliant.recipes.rounding_time import feedback_seconds, rounding_seconds
from pliant.spec import ModelSpec

SPEC = ModelSpec(
    architecture="llama", vocab_size=64, hidden_size=256, num_blocks=2, num_heads=4, num_groups=2,
    head_dim=64, ffn_size=1024, max_context=64, attention_scale=0.125,
)  # fmt: skip


@pytest.fixture
def known_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounding_time, "_sweep_costs", lambda planes: (2e-6, 1e-9))
    monkeypatch.setattr(rounding_time, "_factor_cost", lambda: 1e-9)
    monkeypatch.setattr(rounding_time, "_block_seconds", lambda spec, length: 0.5)


def test_parts_are_added_as_the_sweeps_meet_them(known_rates: None) -> None:
    square, wide, group = 256 * 256, 256 * 1024, 128 * 256
    sweeps = (2 * square + 2 * group + 2 * wide) * (2e-6 + 256e-9) + wide * (2e-6 + 1024e-9)
    factors = 1e-9 * (3 * 256**3 + 1024**3)
    expected = 2 * (sweeps + factors + 0.5 * 8 / 2)
    assert feedback_seconds(SPEC, 8, 32, 8) == pytest.approx(expected)


def test_time_is_linear_in_blocks_and_nothing_for_nearest(known_rates: None) -> None:
    deeper = msgspec.structs.replace(SPEC, num_blocks=6, block_windows=(), block_ropes=())
    ratio = feedback_seconds(deeper, 8, 32, 8) / feedback_seconds(SPEC, 8, 32, 8)
    assert ratio == pytest.approx(3)
    assert rounding_seconds(SPEC, "nearest", 8, 32, 8) == 0


def test_rates_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, few in (("_ROWS", 32), ("_FACTORIZED", 64), ("_RUNS", 1)):
        monkeypatch.setattr(rounding_time, name, few)
    assert feedback_seconds(SPEC, 2, 8, 8) > 0
    assert rounding_seconds(SPEC, "reconstruct", 2, 8, 8) > 0
