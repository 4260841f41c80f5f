"""The definition of SMoL adapters: codes of shapes, gates, merged factors, bytes."""

from __future__ import annotations

import numpy as np
import pytest

from pliant.adapters import (
    AdapterSpec,
    factor_shapes,
    gates,
    merged,
    num_adapter_parameters,
    router_shapes,
    shape_code,
)
from pliant.errors import UsageError
from pliant.shape import SubnetShape
from pliant.spec import ModelSpec

SPEC = ModelSpec(
    architecture="llama", vocab_size=50, hidden_size=24, num_blocks=3, num_heads=4, num_groups=2,
    head_dim=6, ffn_size=64, max_context=16, attention_scale=0.4,
)  # fmt: skip
ADAPTERS = AdapterSpec(rank=3, experts=5, top_k=2, scale=0.5)


def random_router(seed: int = 0) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    shapes = router_shapes(SPEC, ADAPTERS)
    return {name: draw.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def test_the_full_shape_has_lost_nothing_and_every_loss_shows() -> None:
    full = SubnetShape.full(SPEC)
    assert not shape_code(SPEC, full).any()
    cut = SubnetShape((0, 2), (1, 2), (64, 16))
    expected = [0, 1, 0, 0.5, 1, 0, 0, 1, 0.75]
    np.testing.assert_array_equal(shape_code(SPEC, cut), expected)


def test_gates_sum_to_one_and_are_as_many_as_asked_for() -> None:
    for seed in range(20):
        found = gates(ADAPTERS, random_router(seed), shape_code(SPEC, SubnetShape.full(SPEC)))
        assert len(found) == 2
        assert sum(found.values()) == 1.0
        assert list(found) == sorted(found)
        assert min(found.values()) >= 0


def test_gates_are_the_softmax_of_the_best_scores() -> None:
    router, code = random_router(3), shape_code(SPEC, SubnetShape((1,), (1,), (32,)))
    hidden = np.maximum(router["router.hidden"] @ code + router["router.hidden.bias"], 0)
    score = router["router.output"] @ hidden + router["router.output.bias"]
    best = np.argsort(-score)[:2]
    weights = np.exp(score[best] - score[best].max())
    found = gates(ADAPTERS, router, code)
    for expert, weight in zip(best.tolist(), weights / weights.sum(), strict=True):
        assert found[expert] == pytest.approx(weight, abs=2**-15)


def test_equal_scores_take_the_first_experts_and_one_expert_needs_no_router() -> None:
    router = {name: 0 * tensor for name, tensor in random_router().items()}
    assert gates(ADAPTERS, router, shape_code(SPEC, SubnetShape.full(SPEC))) == {0: 0.5, 1: 0.5}
    shared = AdapterSpec(rank=2, experts=1, top_k=1)
    assert router_shapes(SPEC, shared) == {}
    assert gates(shared, {}, shape_code(SPEC, SubnetShape.full(SPEC))) == {0: 1.0}


def test_experts_are_merged_in_weight_space() -> None:
    """The rank stays, gates enter twice, and there are products of different experts."""
    draw = np.random.default_rng(0)
    a_ERI, b_EOR = draw.normal(size=(5, 3, 24)), draw.normal(size=(5, 7, 3))
    a_RI, b_OR = merged(ADAPTERS, {1: 0.25, 4: 0.75}, a_ERI, b_EOR)
    expected = 0.5 * sum(
        one * other * b_EOR[i] @ a_ERI[j]
        for i, one in ((1, 0.25), (4, 0.75))
        for j, other in ((1, 0.25), (4, 0.75))
    )
    np.testing.assert_allclose(b_OR @ a_RI, expected, atol=1e-5)
    assert np.linalg.matrix_rank(b_OR @ a_RI, tol=1e-4) == 3


def test_tensors_are_counted() -> None:
    shapes = factor_shapes(SPEC, ADAPTERS)
    assert shapes["blocks.2.k.a"] == (5, 3, 24)
    assert shapes["blocks.2.k.b"] == (5, 12, 3)
    sides = 3 * (24 + 24 + 2 * (24 + 12) + 48 + 3 * (24 + 64))
    router = 16 * 9 + 16 + 5 * 16 + 5
    assert num_adapter_parameters(SPEC, ADAPTERS) == 5 * 3 * sides + router


@pytest.mark.parametrize(
    "numbers",
    [
        {"rank": 0}, {"rank": 257}, {"rank": 4, "experts": 0}, {"rank": 4, "experts": 65},
        {"rank": 4, "experts": 2, "top_k": 3}, {"rank": 4, "top_k": 0}, {"rank": 4, "scale": 0.0},
    ],
)  # fmt: skip
def test_numbers_that_cannot_be_are_refused(numbers: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="cannot be"):
        AdapterSpec(**numbers)  # type: ignore[arg-type]
