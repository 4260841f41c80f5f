"""The engine computes what the supernet computes, in every cut of every architecture.

Legend: P planes, T tokens, V vocabulary, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pliant.bits import BitPlan, BlockBits
from pliant.runtime import Chunk, Engine
from pliant.shape import SubnetShape
from pliant.spec import ModelSpec, Rope
from pliant.subnet import Subnet

torch = pytest.importorskip("torch", reason="the reference decoder needs torch")

from pliant.models.supernet import Supernet  # noqa: E402

Artifacts = Callable[..., Any]
UNIT_ROUNDOFF = 2.0**-24


def spec_of(**changes: Any) -> ModelSpec:
    """A small llama of awkward sizes: nothing is a multiple of 32, head_dim is not hidden/heads."""
    fields: dict[str, Any] = {
        "architecture": "llama", "vocab_size": 259, "hidden_size": 72, "num_blocks": 3,
        "num_heads": 6, "num_groups": 3, "head_dim": 10, "ffn_size": 100, "max_context": 700,
        "attention_scale": 10**-0.5,
    }  # fmt: skip
    return ModelSpec(**{**fields, **changes})


LOCAL = Rope(base=10_000.0)
FLAVOURS = {
    "llama": spec_of(tied_embeddings=True),
    "llama3": spec_of(
        ropes=(Rope(base=500_000.0, kind="llama3", factor=8.0, original_context=64),),
        o_bias=True, qkv_bias=True, mlp_bias=True,
    ),
    "mistral": spec_of(architecture="mistral", num_groups=1, block_windows=(7,) * 3),
    "qwen2": spec_of(architecture="qwen2", qkv_bias=True, tied_embeddings=True, num_heads=3),
    "qwen3": spec_of(architecture="qwen3", qk_norm=True, hidden_size=33, head_dim=24),
    "gemma2": spec_of(
        architecture="gemma2", norm_offset=1.0, activation="gelu_tanh", post_norms=True,
        embedding_scale=72**0.5, attention_softcap=3.0, logit_softcap=2.0,
        block_windows=(5, 0, 5), tied_embeddings=True, head_dim=64, attention_scale=0.11,
    ),
    "gemma3": spec_of(
        architecture="gemma3", norm_offset=1.0, activation="gelu_tanh", post_norms=True,
        qk_norm=True, embedding_scale=72**0.5, block_windows=(9, 9, 0), block_ropes=(1, 1, 0),
        ropes=(Rope(base=1_000_000.0, kind="linear", factor=8.0), LOCAL), tied_embeddings=True,
    ),
    "smollm3": spec_of(architecture="smollm3", num_blocks=4, block_ropes=(0, 0, 0, -1)),
    "yarn": spec_of(
        ropes=(Rope(kind="yarn", factor=4.0, original_context=128),), activation="gelu"
    ),
}  # fmt: skip


def subnet_of(spec: ModelSpec, planes: int, shape: SubnetShape | None = None) -> Subnet:
    shape = shape or SubnetShape.full(spec)
    return Subnet(spec, shape, BitPlan.uniform(len(shape.blocks), planes, planes))


def tokens_of(spec: ModelSpec, count: int, seed: int = 1) -> NDArray[np.int32]:
    return np.random.default_rng(seed).integers(0, spec.vocab_size, count, np.int32)


def run(engine: Engine, tokens: NDArray[np.int32], sizes: tuple[int, ...] = ()) -> Any:
    """All logits of one sequence, given in chunks of these sizes and then the rest."""
    cache = engine.new_cache(tokens.size)
    parts = np.split(tokens, np.cumsum(sizes))
    return np.concatenate([engine.forward_chunk([Chunk(p, cache, logits="all")])[0] for p in parts])


def reference(artifact: Any, subnet: Subnet, tokens: NDArray[np.int32]) -> tuple[Any, float]:
    """The supernet's logits `[T, V]` and how far another order of summation may lie from them.

    One fp32 sum of n products moves by at most 2 (n + 2) u sum|w x| with its order. Taking that
    of the head for each of the four sums of a block and for the head itself, errors of earlier
    sums passing norms and residuals without growing, bounds the difference of the logits.
    """
    spec, shape, planes = subnet.spec, subnet.shape, subnet.bits.head
    tensors = {
        name: torch.from_numpy(
            artifact.dequantized(name, planes) if len(size) == 2 else artifact.vector(name)
        )
        for name, size in spec.tensors().items()
    }
    net = Supernet.from_tensors(spec, tensors)
    with torch.inference_mode():
        hidden_BTD = net.embed(torch.from_numpy(tokens.astype(np.int64))[None])
        for block, groups, neurons in zip(shape.blocks, shape.groups, shape.neurons, strict=True):
            hidden_BTD = net.block(block, hidden_BTD, groups, neurons)
        logits_TV = net.logits(hidden_BTD)[0].numpy()
        head = tensors["embedding" if spec.tied_embeddings else "head"]
        normed_TD = net._norm(hidden_BTD[0], tensors["final_norm"])
        magnitude = float((normed_TD.abs() @ head.abs().T).max())
    most_columns = max(spec.hidden_size, max(shape.neurons), max(shape.groups) * spec.group_size)
    num_sums = 4 * len(shape.blocks) + 1
    return logits_TV, num_sums * 2 * (most_columns + 2) * UNIT_ROUNDOFF * magnitude


def assert_close(found: Any, expected: Any, bound: float) -> None:
    error = float(np.abs(found - expected).max())
    print(f"error {error:.2e}, {error / bound:.0%} of the bound {bound:.2e}")
    assert error <= bound


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_prefill_and_decode_equal_the_supernet(flavour: str, memory_artifact: Artifacts) -> None:
    spec = FLAVOURS[flavour]
    artifact, subnet, tokens = memory_artifact(spec), subnet_of(spec, 8), tokens_of(spec, 40)
    expected_TV, bound = reference(artifact, subnet, tokens)
    with Engine(artifact, subnet, 2, "float32", "float32") as engine:
        assert_close(run(engine, tokens), expected_TV, bound)
        assert_close(run(engine, tokens, (17, *[1] * 22)), expected_TV, bound)


@pytest.mark.parametrize("flavour", ["llama3", "gemma3"])
@pytest.mark.parametrize("planes", range(1, 9))
def test_every_plane_count(planes: int, flavour: str, memory_artifact: Artifacts) -> None:
    spec = FLAVOURS[flavour]
    artifact, subnet, tokens = memory_artifact(spec), subnet_of(spec, planes), tokens_of(spec, 12)
    expected_TV, bound = reference(artifact, subnet, tokens)
    with Engine(artifact, subnet, 2, "float32", "float32") as engine:
        assert_close(run(engine, tokens), expected_TV, bound)


CUTS = {
    "depth": SubnetShape((0, 2), (3, 3), (100, 100)),
    "last block": SubnetShape((2,), (3,), (100,)),
    "one group": SubnetShape((0, 1, 2), (1, 1, 1), (100, 100, 100)),
    "width": SubnetShape((0, 1, 2), (2, 2, 2), (64, 64, 64)),
    "depth and widths": SubnetShape((1, 2), (1, 2), (70, 1)),
    "halves": SubnetShape((0, 1, 2), (0, 2, 3), (64, 100, 0)),
    "attention alone": SubnetShape((0, 2), (3, 1), (0, 0)),
    "mlps alone": SubnetShape((1, 2), (0, 0), (100, 37)),
}


@pytest.mark.parametrize("flavour", ["llama3", "qwen3", "gemma2", "gemma3"])
@pytest.mark.parametrize("cut", CUTS)
def test_every_cut(cut: str, flavour: str, memory_artifact: Artifacts) -> None:
    spec = FLAVOURS[flavour]
    artifact, subnet = memory_artifact(spec), subnet_of(spec, 5, CUTS[cut])
    tokens = tokens_of(spec, 20)
    expected_TV, bound = reference(artifact, subnet, tokens)
    with Engine(artifact, subnet, 2, "float32", "float32") as engine:
        assert_close(run(engine, tokens, (13,)), expected_TV, bound)


def test_planes_of_each_matrix_are_its_own(memory_artifact: Artifacts) -> None:
    """A plan that differs everywhere equals a model whose matrices are stored that coarsely."""
    spec = FLAVOURS["qwen2"]
    artifact, tokens = memory_artifact(spec), tokens_of(spec, 9)
    counts = ((1, 2, 3, 4, 5, 6, 7), (8, 7, 6, 5, 4, 3, 2), (3, 1, 8, 2, 7, 4, 6))
    blocks = tuple(BlockBits(*count) for count in counts)
    subnet = Subnet(spec, SubnetShape.full(spec), BitPlan(embedding=6, head=3, blocks=blocks))
    coarse = {
        f"blocks.{index}.{name}": torch.from_numpy(
            artifact.dequantized(f"blocks.{index}.{name}", getattr(block, name))
        )
        for index, block in enumerate(blocks)
        for name in ("q", "k", "v", "o", "gate", "up", "down")
    }
    vectors = {n: torch.from_numpy(artifact.vector(n)) for n, s in spec.tensors().items()
               if len(s) == 1}  # fmt: skip
    nets = [
        Supernet.from_tensors(
            spec, {**coarse, **vectors,
                   "embedding": torch.from_numpy(artifact.dequantized("embedding", planes))}
        )
        for planes in (6, 3)
    ]  # fmt: skip
    with torch.inference_mode():
        hidden = nets[0].embed(torch.from_numpy(tokens.astype(np.int64))[None])
        for index in range(spec.num_blocks):
            hidden = nets[0].block(index, hidden)
        expected_TV = nets[1].logits(hidden)[0].numpy()
    with Engine(artifact, subnet, 1, "float32", "float32") as engine:
        np.testing.assert_allclose(run(engine, tokens), expected_TV, atol=1e-4)


@pytest.mark.parametrize("flavour", ["llama", "mistral", "gemma3"])
def test_prompts_longer_than_a_step(flavour: str, memory_artifact: Artifacts) -> None:
    spec = FLAVOURS[flavour]
    artifact, subnet, tokens = memory_artifact(spec), subnet_of(spec, 6), tokens_of(spec, 601)
    expected_TV, bound = reference(artifact, subnet, tokens)
    with Engine(artifact, subnet, 2, "float32", "float32") as engine:
        assert_close(run(engine, tokens), expected_TV, bound)


@pytest.mark.parametrize("flavour", ["llama", "gemma2", "qwen3"])
def test_int8_activations_stay_close(flavour: str, memory_artifact: Artifacts) -> None:
    """Rounding activations to 1/254 of a group's largest loses far less than a plane does."""
    spec = FLAVOURS[flavour]
    artifact, tokens = memory_artifact(spec), tokens_of(spec, 64)
    exact, rounded, coarse = (
        log_softmax(run(Engine(artifact, subnet_of(spec, planes), 2, mode), tokens))
        for planes, mode in ((8, "float32"), (8, "int8"), (5, "float32"))
    )
    divergence = float(np.mean(np.sum(np.exp(exact) * (exact - rounded), axis=-1)))
    of_planes = float(np.mean(np.sum(np.exp(exact) * (exact - coarse), axis=-1)))
    print(f"int8 {divergence:.2e} nats, five planes {of_planes:.2e} nats")
    assert divergence < 5e-3
    assert divergence < of_planes


def log_softmax(logits_TV: NDArray[np.float32]) -> NDArray[np.float64]:
    wide = logits_TV.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))


@pytest.mark.parametrize("flavour", ["llama", "gemma3"])
def test_half_precision_cache_is_close(flavour: str, memory_artifact: Artifacts) -> None:
    spec = FLAVOURS[flavour]
    artifact, subnet, tokens = memory_artifact(spec), subnet_of(spec, 8), tokens_of(spec, 48)
    exact = run(Engine(artifact, subnet, 1, "float32", "float32"), tokens)
    half = run(Engine(artifact, subnet, 1, "float32", "float16"), tokens)
    np.testing.assert_allclose(half, exact, atol=0.02)
    assert not np.array_equal(half, exact)
