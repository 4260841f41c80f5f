"""Cuts as the papers define them, by masks and residual identities, are the prefixes run here."""

from __future__ import annotations

import itertools

import msgspec
import pytest
import torch
from tests.tune.conftest import tiny_model

from pliant.models import KeyValueCache, Supernet
from pliant.shape import SubnetShape

TOKENS_BT = torch.arange(18).view(2, 9)
KEEPS = [
    keep for count in (1, 2, 3) for keep in itertools.combinations(range(3), count)
]  # every keep-vector of three blocks, those without the last one too


#: What else may be part of a block or of the model.
FLAVOURS: tuple[dict[str, bool], ...] = (
    {}, {"qkv_bias": True}, {"qk_norm": True}, {"tied_embeddings": False},
    {"qkv_bias": True, "qk_norm": True, "tied_embeddings": False},
)  # fmt: skip


def flavoured(changes: dict[str, bool]) -> Supernet:
    """A tiny model of grouped queries, all its vectors far from what they begin as."""
    spec = msgspec.structs.replace(tiny_model().spec, **changes)
    model, draw = Supernet.initialized(spec, 0), torch.Generator().manual_seed(1)
    for name, weight in model.weights.items():
        scale = 0.1 if weight.ndim == 2 else 0.5
        model.weights[name] = weight.detach() + scale * torch.randn(weight.shape, generator=draw)
    return model


def zeroed(
    columns: dict[str, int],
    blocks: tuple[int, ...] = (0, 1, 2),
    changes: dict[str, bool] | None = None,
) -> Supernet:
    """The model with the columns from a number on set to zero, in the matrices named."""
    model = tiny_model() if changes is None else flavoured(changes)
    for block in blocks:
        for matrix, begin in columns.items():
            weight = model.weights[f"blocks.{block}.{matrix}"].detach().clone()
            weight[:, begin:] = 0
            model.weights[f"blocks.{block}.{matrix}"] = weight
    return model


@pytest.mark.parametrize(("groups", "neurons"), [(1, 64), (2, 40), (1, 7)])
@torch.no_grad()
def test_a_masked_model_is_the_prefix(groups: int, neurons: int) -> None:
    """A head or neuron whose output is masked adds nothing: its column of `o` or `down` is 0."""
    plain = tiny_model()
    masked = zeroed({"o": groups * plain.spec.group_size, "down": neurons})
    shape = SubnetShape((0, 1, 2), (groups,) * 3, (neurons,) * 3)
    torch.testing.assert_close(plain(TOKENS_BT, shape), masked(TOKENS_BT), rtol=0, atol=1e-5)
    assert not torch.allclose(plain(TOKENS_BT), masked(TOKENS_BT), atol=0.01)


@pytest.mark.parametrize("changes", FLAVOURS, ids=str)
@torch.no_grad()
def test_a_masked_model_of_any_flavour_is_the_prefix(changes: dict[str, bool]) -> None:
    """Biases and norms of heads that are cut go with them; the slice is a model of its own."""
    plain = flavoured(changes)
    shape = SubnetShape((0, 1, 2), (1,) * 3, (40,) * 3)
    masked = zeroed({"o": plain.spec.group_size, "down": 40}, changes=changes)
    assert plain.spec.num_heads > plain.spec.num_groups > 1
    cut = plain(TOKENS_BT, shape)
    torch.testing.assert_close(cut, masked(TOKENS_BT), rtol=0, atol=1e-5)
    torch.testing.assert_close(cut, plain.sliced(shape)(TOKENS_BT), rtol=0, atol=1e-5)
    assert not torch.allclose(cut, plain(TOKENS_BT), atol=0.01)


@pytest.mark.parametrize("keep", KEEPS)
@torch.no_grad()
def test_a_dropped_block_is_an_identity_and_decoding_knows_it(keep: tuple[int, ...]) -> None:
    plain = tiny_model()
    dropped = tuple(block for block in range(3) if block not in keep)
    identity = zeroed({"o": 0, "down": 0}, dropped)
    shape = SubnetShape.uniform(plain.spec, keep, 1.0)
    whole = plain(TOKENS_BT, shape)
    torch.testing.assert_close(whole, identity(TOKENS_BT), rtol=0, atol=1e-5)
    cache = KeyValueCache()
    steps = [plain(part, shape, cache) for part in TOKENS_BT.split([4, 1, 1, 3], dim=1)]
    torch.testing.assert_close(torch.cat(steps, 1), whole, rtol=0, atol=1e-5)
