"""The supernet runs every subnet without copying, and reordering does not change the function.

Equalities are tested in float64, where anything but a difference in the order of summation shows;
one test repeats them at the precision of float32.
"""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest
import torch
from torch.nn import functional

from pliant.errors import CheckpointError, UsageError
from pliant.models import KeyValueCache, Supernet, permuted_block
from pliant.shape import SubnetShape
from pliant.shape.orders import WidthOrders
from pliant.spec import ModelSpec, Rope

TOLERANCE = 1e-10
BASE: dict[str, Any] = {
    "architecture": "llama",
    "vocab_size": 53,
    "hidden_size": 24,
    "num_blocks": 4,
    "num_heads": 6,
    "num_groups": 3,
    "head_dim": 6,
    "ffn_size": 22,
    "max_context": 64,
    "attention_scale": 6**-0.5,
}
SPECS = {
    "llama": ModelSpec(**BASE),
    "tied": ModelSpec(**BASE, tied_embeddings=True),
    "biases": ModelSpec(**BASE, qkv_bias=True, o_bias=True, mlp_bias=True),
    "gemma": ModelSpec(
        **BASE, qk_norm=True, post_norms=True, norm_offset=1.0, activation="gelu_tanh",
        embedding_scale=5.0, attention_softcap=2.0, logit_softcap=3.0, tied_embeddings=True,
        ropes=(Rope(), Rope(base=50.0)), block_ropes=(0, 1, -1, 0), block_windows=(5, 0, 3, 0),
    ),
    "windows": ModelSpec(**BASE, block_windows=(4, 0, 4, 7), block_ropes=(0, -1, 0, 0)),
}  # fmt: skip


@pytest.fixture(params=SPECS)
def net(request: pytest.FixtureRequest) -> Supernet:
    torch.set_num_threads(1)
    spec = SPECS[request.param]
    generator = torch.Generator().manual_seed(7)
    tensors = {
        name: 0.3 * torch.randn(shape, generator=generator).double() + name.endswith("norm")
        for name, shape in spec.tensors().items()
    }
    return Supernet.from_tensors(spec, tensors)


def tokens(count: int = 17) -> torch.Tensor:
    return torch.randint(0, 53, (2, count), generator=torch.Generator().manual_seed(3))


KEEP_VECTORS = [(0, 1, 2, 3), (0, 1, 2), (0, 3), (1, 2), (2,), (3,), (0,)]


def shapes(blocks: tuple[int, ...]) -> list[SubnetShape]:
    """The widest, the narrowest and some mixed widths of these blocks."""
    dice = random.Random(sum(blocks))
    count = len(blocks)
    mixed = [
        SubnetShape(
            blocks,
            tuple(dice.randint(1, 3) for _ in blocks),
            tuple(dice.randint(1, 22) for _ in blocks),
        )
        for _ in range(2)
    ]
    return [
        SubnetShape(blocks, (3,) * count, (22,) * count),
        SubnetShape(blocks, (1,) * count, (1,) * count),
        *mixed,
        SubnetShape(  # the attention of one block, the MLP of the next
            blocks,
            tuple(0 if place % 2 else 2 for place in range(count)),
            tuple(22 if place % 2 else 0 for place in range(count)),
        ),
    ]


@pytest.mark.parametrize("blocks", KEEP_VECTORS)
@torch.no_grad()
def test_a_subnet_equals_its_sliced_model(net: Supernet, blocks: tuple[int, ...]) -> None:
    for shape in shapes(blocks):
        sliced = net.sliced(shape)
        assert sliced.spec.num_blocks == len(blocks)
        stored = {weight.data_ptr() for weight in net.parameters()}
        assert all(weight.data_ptr() not in stored for weight in sliced.parameters())
        assert all(weight.is_contiguous() for weight in sliced.parameters())
        ours, theirs = net(tokens(), shape), sliced(tokens())
        torch.testing.assert_close(ours, theirs, atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_a_uniform_slice_is_a_stock_model(net: Supernet) -> None:
    sliced = net.sliced(SubnetShape((0, 2), (2, 2), (9, 9)))
    again = Supernet.from_tensors(sliced.spec, sliced.weights)
    assert torch.equal(again(tokens()), sliced(tokens()))


@torch.no_grad()
def test_a_slice_of_a_slice(net: Supernet) -> None:
    once = net.sliced(SubnetShape((0, 2, 3), (2, 1, 3), (9, 22, 4)))
    inner = SubnetShape((0, 2), (1, 2), (5, 3))
    outer = SubnetShape((0, 3), (1, 2), (5, 3))
    torch.testing.assert_close(once(tokens(), inner), net(tokens(), outer), atol=TOLERANCE, rtol=0)
    with pytest.raises(UsageError, match="it has 1 and 22"):
        once(tokens(), SubnetShape((1,), (2,), (22,)))


@pytest.mark.parametrize("blocks", KEEP_VECTORS)
@torch.no_grad()
def test_cached_decode_equals_the_full_forward(net: Supernet, blocks: tuple[int, ...]) -> None:
    for shape in shapes(blocks)[1:3]:
        expected = net(tokens(), shape)
        cache = KeyValueCache()
        steps = [(0, 5), (5, 6), (6, 13), *((at, at + 1) for at in range(13, 17))]
        parts = [net(tokens()[:, start:end], shape, cache) for start, end in steps]
        torch.testing.assert_close(torch.cat(parts, 1), expected, atol=TOLERANCE, rtol=0)
        assert cache.length() == 17

        cache.truncate(6)
        again = net(tokens()[:, 6:], shape, cache)
        torch.testing.assert_close(again, expected[:, 6:], atol=TOLERANCE, rtol=0)


def test_no_weight_is_copied(net: Supernet) -> None:
    for index in range(4):
        for name, view in net.block_weights(index, 2, 7).items():
            stored = net.weights[f"blocks.{index}.{name}"]
            assert view.data_ptr() == stored.data_ptr()
            assert view.untyped_storage().data_ptr() == stored.untyped_storage().data_ptr()
            assert view.stride() == stored.stride()


@torch.no_grad()
def test_pieces_make_the_whole(net: Supernet) -> None:
    shape = SubnetShape((0, 2), (2, 1), (5, 20))
    hidden = net.embed(tokens())
    for block, groups, neurons in zip(shape.blocks, shape.groups, shape.neurons, strict=True):
        hidden = net.block(block, hidden, groups, neurons)
    assert torch.equal(net.logits(hidden), net(tokens(), shape))


@torch.no_grad()
def test_observer_sees_the_inputs_of_every_matrix(net: Supernet) -> None:
    seen: dict[str, torch.Tensor] = {}
    hidden = net.embed(tokens())
    plain = net.block(1, hidden, 2, 9)
    observed = net.block(1, hidden, 2, 9, observe=seen.__setitem__)
    assert torch.equal(plain, observed)
    assert {name: tuple(x.shape) for name, x in seen.items()} == {
        "q": (2, 17, net.spec.hidden_size),
        "o": (2, 17, 2 * 2 * 6),
        "gate": (2, 17, net.spec.hidden_size),
        "down": (2, 17, 9),
    }
    # Silencing what `o` and `down` see leaves only what their biases say.
    if not (net.spec.post_norms or net.spec.o_bias):
        change = functional.linear(seen["o"], net.block_weights(1, 2, 9)["o"])
        change = change + functional.linear(seen["down"], net.block_weights(1, 2, 9)["down"])
        torch.testing.assert_close(observed - hidden, change, atol=TOLERANCE, rtol=0)


def random_orders(spec: ModelSpec) -> WidthOrders:
    dice = random.Random(5)

    def order(count: int) -> tuple[int, ...]:
        return tuple(dice.sample(range(count), count))

    groups = tuple(order(spec.num_groups) for _ in range(spec.num_blocks))
    return WidthOrders(groups, tuple(order(spec.ffn_size) for _ in range(spec.num_blocks)))


@torch.no_grad()
def test_permuting_leaves_the_dense_function_unchanged(net: Supernet) -> None:
    orders = random_orders(net.spec)
    before, narrow = net(tokens()), SubnetShape((0, 1, 2, 3), (1,) * 4, (6,) * 4)
    narrow_before = net(tokens(), narrow)
    original = dict(net.weights)
    net.permute(orders)
    torch.testing.assert_close(net(tokens()), before, atol=TOLERANCE, rtol=0)
    assert not torch.allclose(net(tokens(), narrow), narrow_before)
    # The first neuron now is the one the order names first.
    first = orders.neurons[2][0]
    assert torch.equal(net.weights["blocks.2.up"][0], original["blocks.2.up"][first])
    assert torch.equal(net.weights["blocks.2.down"][:, 0], original["blocks.2.down"][:, first])

    net.permute(orders.inverse())
    assert all(torch.equal(net.weights[name], weight) for name, weight in original.items())


def test_permuting_one_block_for_streaming(net: Supernet) -> None:
    orders = random_orders(net.spec)
    block = permuted_block(net.spec, net.block_weights(1), orders.groups[1], orders.neurons[1])
    net.permute(orders)
    assert all(
        torch.equal(net.weights[f"blocks.1.{name}"], weight) for name, weight in block.items()
    )


def test_orders_of_another_model_are_refused(net: Supernet) -> None:
    with pytest.raises(UsageError):
        net.permute(WidthOrders(((0, 1, 2),), (tuple(range(22)),)))


def test_gradients_reach_exactly_what_the_subnet_uses(net: Supernet) -> None:
    for weight in net.parameters():
        weight.requires_grad_()
    shape = SubnetShape((0, 2), (1, 2), (5, 9))
    with torch.inference_mode():
        net(tokens(), shape)  # tables made here must not hinder training
    loss = functional.cross_entropy(net(tokens(), shape).flatten(0, 1), tokens().flatten())
    loss.backward()
    assert net.weights["blocks.1.q"].grad is None
    gate = net.weights["blocks.2.gate"].grad
    assert gate is not None
    assert gate[:9].abs().sum(1).all()
    assert not gate[9:].any()
    o_gradient = net.weights["blocks.0.o"].grad
    assert o_gradient is not None
    assert o_gradient[:, :12].any()
    assert not o_gradient[:, 12:].any()


def test_training_from_scratch_learns() -> None:
    torch.set_num_threads(1)
    net = Supernet.initialized(SPECS["gemma"], seed=1)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        loss = functional.cross_entropy(
            net(tokens())[:, :-1].flatten(0, 1), tokens()[:, 1:].flatten()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(3.97, abs=0.1)  # the entropy of 53 equal tokens
    assert losses[-1] < 2.0


def test_fresh_weights_depend_on_the_seed_alone() -> None:
    spec = SPECS["biases"]
    first, again, other = (Supernet.initialized(spec, seed) for seed in (1, 1, 2))
    assert all(torch.equal(first.weights[n], again.weights[n]) for n in first.weights)
    assert not torch.equal(first.weights["embedding"], other.weights["embedding"])
    assert first.weights["embedding"].std().item() == pytest.approx(0.02, rel=0.1)
    assert first.weights["blocks.0.down"].std().item() == pytest.approx(0.02 / 8**0.5, rel=0.2)
    assert not first.weights["blocks.0.q.bias"].any()


@torch.no_grad()
def test_float32_differs_by_rounding_only(net: Supernet) -> None:
    # The cap would hide how large the numbers are whose rounding is bounded here.
    net.spec = msgspec.structs.replace(net.spec, logit_softcap=0.0)
    shape = SubnetShape((0, 2, 3), (2, 1, 3), (9, 22, 4))
    exact, exact_subnet = net(tokens()), net(tokens(), shape)
    net.to(dtype=torch.float32)
    assert net(tokens()).dtype == torch.float32
    tolerance = 1e-5 * exact.abs().max().item()
    torch.testing.assert_close(net(tokens()).double(), exact, atol=tolerance, rtol=0)
    subnet = net(tokens(), shape)
    torch.testing.assert_close(subnet.double(), exact_subnet, atol=tolerance, rtol=0)
    torch.testing.assert_close(net.sliced(shape)(tokens()), subnet, atol=tolerance, rtol=0)
    net.permute(random_orders(net.spec))
    torch.testing.assert_close(net(tokens()).double(), exact, atol=tolerance, rtol=0)


@torch.no_grad()
def test_bfloat16_is_close(net: Supernet) -> None:
    expected = net(tokens())
    net.to(dtype=torch.bfloat16)
    logits = net(tokens()).double()
    similarity = functional.cosine_similarity(logits.flatten(), expected.flatten(), dim=0)
    assert similarity > 0.99


def test_wrong_tensors_are_named(net: Supernet) -> None:
    weights = dict(net.weights)
    with pytest.raises(CheckpointError, match=r"blocks\.4\.q is not part"):
        Supernet.from_tensors(net.spec, {**weights, "blocks.4.q": weights["final_norm"]})
    with pytest.raises(CheckpointError, match=r"blocks\.1\.up has shape \[24\]"):
        Supernet.from_tensors(net.spec, {**weights, "blocks.1.up": weights["final_norm"]})
    del weights["blocks.0.k"]
    with pytest.raises(CheckpointError, match=r"blocks\.0\.k is missing"):
        Supernet.from_tensors(net.spec, weights)


def test_a_shape_too_large_is_refused(net: Supernet) -> None:
    for shape in (
        SubnetShape((4,), (1,), (1,)),
        SubnetShape((0,), (4,), (1,)),
        SubnetShape((0,), (1,), (23,)),
    ):
        with pytest.raises(UsageError):
            net(tokens(), shape)
