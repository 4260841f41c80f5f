"""Random specs and subnets for properties of costs."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import pytest
from hypothesis import strategies as st

from pliant.bits import BitPlan
from pliant.runtime.random_weights import RandomWeights
from pliant.shape import SubnetShape
from pliant.spec import ModelSpec
from pliant.subnet import Subnet


@st.composite
def _specs(draw: st.DrawFn) -> ModelSpec:
    groups, heads = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    blocks = draw(st.integers(1, 4))
    head_dim = 2 * draw(st.integers(1, 24))
    return ModelSpec(
        architecture="llama", vocab_size=draw(st.integers(2, 300)),
        hidden_size=draw(st.integers(1, 200)), num_blocks=blocks, num_heads=groups * heads,
        num_groups=groups, head_dim=head_dim, ffn_size=draw(st.integers(64, 400)),
        max_context=4096, attention_scale=0.3, qkv_bias=draw(st.booleans()),
        qk_norm=draw(st.booleans()), post_norms=draw(st.booleans()),
        tied_embeddings=draw(st.booleans()), logit_softcap=draw(st.sampled_from([0.0, 30.0])),
        block_windows=tuple(draw(st.sampled_from([0, 5, 300])) for _ in range(blocks)),
    )  # fmt: skip


@st.composite
def _subnets(draw: st.DrawFn) -> Subnet:
    spec = draw(_specs())
    kept = draw(st.integers(1, spec.num_blocks))
    shape = SubnetShape.uniform(spec, tuple(range(kept)), draw(st.sampled_from([0.4, 0.7, 1.0])))
    return Subnet(spec, shape, BitPlan.uniform(kept, draw(st.integers(1, 8))))


@pytest.fixture(scope="session")
def subnets() -> Callable[[], st.SearchStrategy[Subnet]]:
    """Small subnets of random specs, sizes awkward on purpose."""
    return _subnets


TINY = ModelSpec(
    architecture="llama", vocab_size=256, hidden_size=64, num_blocks=4, num_heads=4, num_groups=2,
    head_dim=16, ffn_size=176, max_context=512, attention_scale=0.25,
)  # fmt: skip


@pytest.fixture(scope="session")
def tiny() -> ModelSpec:
    """The small reference model of cost models."""
    return TINY


@pytest.fixture(scope="session")
def random_weights() -> Callable[[ModelSpec], RandomWeights]:
    """Random weights of a spec, made once."""
    return lru_cache(RandomWeights)
