"""SMoL adapters on a supernet: what is true of them whatever was learnt."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.tune.conftest import tiny_model

from pliant.adapters import AdapterSpec, gates, router_shapes, shape_code, update_rank
from pliant.errors import CheckpointError, UsageError
from pliant.models import KeyValueCache, ShapeAdapters, Supernet, gate_noise
from pliant.shape import SubnetShape, WidthOrders

ADAPTERS = AdapterSpec(rank=4, experts=5, top_k=2, scale=2.0)
TOKENS_BT = torch.arange(20).view(2, 10)
CUT = SubnetShape((0, 2), (2, 1), (64, 32))


def learnt(adapters: AdapterSpec = ADAPTERS, seed: int = 0) -> Supernet:
    """A model whose adapters are far from zero."""
    model = tiny_model()
    model.adapters = ShapeAdapters.initialized(model.spec, adapters, seed)
    draw = torch.Generator().manual_seed(1)
    for name, tensor in model.adapters.tensors.items():
        model.adapters.tensors[name] = tensor + 0.2 * torch.randn(tensor.shape, generator=draw)
    return model


@torch.no_grad()
def test_fresh_adapters_change_nothing() -> None:
    plain, adapted = tiny_model(), tiny_model()
    adapted.adapters = ShapeAdapters.initialized(adapted.spec, ADAPTERS, 0)
    for shape in (None, CUT):
        assert torch.equal(plain(TOKENS_BT, shape), adapted(TOKENS_BT, shape))


@pytest.mark.parametrize("shape", [None, CUT, SubnetShape((1,), (1,), (40,))])
@torch.no_grad()
def test_folded_into_the_weights_they_give_the_same_logits(shape: SubnetShape | None) -> None:
    model = learnt()
    apart = model.sliced(shape or model.shape)
    assert apart.adapters is None
    assert not torch.allclose(tiny_model()(TOKENS_BT, shape), apart(TOKENS_BT), atol=0.1)
    torch.testing.assert_close(model(TOKENS_BT, shape), apart(TOKENS_BT), rtol=0, atol=2e-5)


@torch.no_grad()
def test_a_shape_has_the_same_logits_always_and_shapes_differ() -> None:
    model = learnt()
    first = model(TOKENS_BT, CUT)
    model(TOKENS_BT)
    assert torch.equal(model(TOKENS_BT, CUT), first)
    assert model.adapters is not None
    # The adapters of another shape of the same widths are others.
    other = model.at(model.shape)
    assert not torch.equal(other.low_rank["blocks.0.q"][0], model.at(CUT).low_rank["blocks.0.q"][0])


@torch.no_grad()
def test_cached_decoding_is_the_whole_forward() -> None:
    model, cache = learnt(), KeyValueCache()
    whole = model(TOKENS_BT, CUT)
    parts = [model(part, CUT, cache) for part in TOKENS_BT.split(3, dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-5)


def test_gates_without_noise_are_those_of_the_definition() -> None:
    model = learnt()
    assert model.adapters is not None
    router = {
        name: model.adapters.tensors[name].numpy() for name in router_shapes(model.spec, ADAPTERS)
    }
    expected = gates(ADAPTERS, router, shape_code(model.spec, CUT))
    found = {expert: float(gate) for expert, gate in model.adapters.gates(CUT).items()}
    assert found == expected
    # Noise of 0 is the same router in fp32, through which gradients flow.
    traced = model.adapters.gates(CUT, torch.zeros(5))
    assert {e: pytest.approx(expected[e], abs=1e-4) for e in expected} == {
        e: float(g) for e, g in traced.items()
    }


def test_noise_is_a_function_of_seed_step_and_place_and_moves_the_choice() -> None:
    assert torch.equal(gate_noise(ADAPTERS, 1, 2, 3), gate_noise(ADAPTERS, 1, 2, 3))
    drawn = [gate_noise(ADAPTERS, 0, step, 0) for step in range(30)]
    assert len({tuple(noise.tolist()) for noise in drawn}) == 30
    adapters = ShapeAdapters.initialized(tiny_model().spec, ADAPTERS, 0)
    pairs = {tuple(sorted(adapters.gates(CUT, noise))) for noise in drawn}
    assert len(pairs) > 1
    for noise in drawn:
        values = torch.stack(list(adapters.gates(CUT, noise).values()))
        assert len(values) == 2
        assert float(values.sum()) == pytest.approx(1, abs=1e-6)


def test_gradients_reach_router_noise_and_the_chosen_experts_only() -> None:
    model = learnt()
    assert model.adapters is not None
    tensors = model.adapters.tensors
    for name in tensors:
        tensors[name] = tensors[name].requires_grad_()
    noise_E = gate_noise(ADAPTERS, 0, 0, 0)
    chosen = set(model.adapters.gates(CUT, noise_E))
    adapted = model.at(CUT, noise_E)
    hidden_BTD = adapted.block(0, adapted.embed(TOKENS_BT))
    adapted.logits(hidden_BTD).square().mean().backward()
    for name in (*router_shapes(model.spec, ADAPTERS), "router.noise.bias"):
        assert tensors[name].grad is not None and tensors[name].grad.abs().sum() > 0, name
    gradient_EOR = tensors["blocks.0.q.b"].grad
    assert gradient_EOR is not None
    moved = {e for e in range(5) if gradient_EOR[e].abs().sum() > 0}
    assert moved == chosen


@torch.no_grad()
@pytest.mark.parametrize("experts", [1, 5])
def test_anchored_adapters_spare_the_full_shape_and_no_other(experts: int) -> None:
    adapters = AdapterSpec(rank=4, experts=experts, top_k=min(2, experts), anchored=True)
    model = learnt(adapters)
    assert model.adapters is not None
    assert torch.equal(model(TOKENS_BT), tiny_model()(TOKENS_BT))
    assert model.at().low_rank == {} and model.adapters.gates(model.shape) == {}
    assert model.adapters.gates(model.shape, torch.zeros(experts)) == {}
    assert update_rank(model.spec, adapters, model.shape) == 0
    # One neuron less is another shape.
    nearly = SubnetShape((0, 1, 2), (2, 2, 2), (64, 64, 63))
    for shape in (CUT, nearly):
        assert len(model.adapters.gates(shape)) == adapters.top_k
        assert update_rank(model.spec, adapters, shape) == adapters.rank
        assert not torch.allclose(model(TOKENS_BT, shape), tiny_model()(TOKENS_BT, shape))


def test_what_does_not_fit_is_refused() -> None:
    model = learnt()
    assert model.adapters is not None
    tensors = model.adapters.stored_tensors()
    assert "router.noise" not in tensors
    with pytest.raises(CheckpointError, match=r"blocks\.1\.up\.a is missing"):
        ShapeAdapters(model.spec, ADAPTERS, {k: v for k, v in tensors.items() if "1.up.a" not in k})
    with pytest.raises(CheckpointError, match="no tensor of these adapters"):
        ShapeAdapters(model.spec, ADAPTERS, {**tensors, "router.more": torch.zeros(1)})
    with pytest.raises(UsageError, match="permute them before"):
        model.permute(WidthOrders.identity(model.spec))


@torch.no_grad()
def test_one_expert_is_one_lora_for_all_shapes() -> None:
    model = learnt(AdapterSpec(rank=4, experts=1, top_k=1))
    full, cut = model.at().low_rank["blocks.0.up"], model.at(CUT).low_rank["blocks.0.up"]
    assert np.array_equal(full[0], cut[0])
    assert torch.equal(full[1][: len(cut[1])], cut[1])
