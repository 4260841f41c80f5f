"""What every transform promises: the same function in other weights, and every cut stays legal."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pliant.bits import UniformCodec
from pliant.calibrate import TRANSFORMS, MomentStream
from pliant.errors import UnsupportedError
from pliant.models import Supernet
from pliant.models.equivalence import hadamard
from pliant.shape import SubnetShape
from pliant.spec import read_spec

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from interop_models import ARCHITECTURES, tiny_config

CHANGING = [name for name in TRANSFORMS if name != "none"]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def net_of(architecture: str, dtype: torch.dtype = torch.float64, **changes: object) -> Supernet:
    """A random model, with channels of very different sizes, as trained ones have."""
    spec = read_spec({**tiny_config(architecture), **changes})
    draw = torch.Generator().manual_seed(5)
    weights = {}
    for name, shape in spec.tensors().items():
        weight = torch.randn(shape, generator=draw, dtype=torch.float64)
        is_norm = name.endswith("norm")
        weights[name] = weight * shape[-1] ** -0.5 if len(shape) == 2 else 0.3 * weight + is_norm
        if name.endswith(("attention_norm", "mlp_norm")):
            weights[name][::9] *= 12
    return Supernet.from_tensors(spec, {name: weight.to(dtype) for name, weight in weights.items()})


def tokens(count: int = 150) -> torch.Tensor:
    return torch.randint(0, 384, (2, count), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(
    ("name", "architecture"),
    [(name, architecture) for name in ("scaled", "rotated") for architecture in ARCHITECTURES]
    + [("scaled, rotated", "llama-biases")],
)
def test_logits_of_every_cut_stay(name: str, architecture: str) -> None:
    dense = net_of(architecture)
    before = {key: weight.clone() for key, weight in dense.weights.items()}
    if dense.spec.post_norms and "rotated" in name:
        with pytest.raises(UnsupportedError, match="Use scaling"):
            TRANSFORMS[name](dense, tokens())
        return
    changed = TRANSFORMS[name](dense, tokens())
    assert any(not torch.equal(weight, before[key]) for key, weight in changed.weights.items()
               if key in before)  # fmt: skip
    assert all(torch.equal(weight, before[key]) for key, weight in dense.weights.items())
    blocks = tuple(range(dense.spec.num_blocks))
    text_BT = tokens(19)
    for shape in (
        SubnetShape.full(dense.spec),
        SubnetShape.uniform(dense.spec, blocks, 0.5),
        SubnetShape(blocks[1:], (1,) * len(blocks[1:]), tuple(17 + b for b in blocks[1:])),
    ):
        expected = dense(text_BT, shape)
        torch.testing.assert_close(changed(text_BT, shape), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", CHANGING)
def test_the_rounding_of_fp32_is_all_that_differs(name: str) -> None:
    dense = net_of("llama-biases", torch.float32)
    changed = TRANSFORMS[name](dense, tokens())
    assert changed.weights["blocks.0.q"].dtype == torch.float32
    difference = (changed(tokens(19)) - dense(tokens(19))).square().mean().sqrt()
    assert 0 < difference / dense(tokens(19)).square().mean().sqrt() < 1e-5


@pytest.mark.parametrize("size", [1, 2, 12, 43, 64, 172, 192])
def test_a_rotation_is_orthogonal_and_spreads_each_channel(size: int) -> None:
    turn = hadamard(size, seed=1)
    torch.testing.assert_close(turn @ turn.T, torch.eye(size).double(), rtol=0, atol=1e-12)
    assert turn.abs().max() <= np.sqrt(2 / size) + 1e-12 or size == 1
    assert not torch.equal(hadamard(64, 1), hadamard(64, 2))


def test_rotation_takes_outliers_out_of_columns() -> None:
    dense = net_of("llama")
    turned = TRANSFORMS["rotated"](dense, tokens())

    def peak(model: Supernet) -> float:
        # With the gain of the norm, as what multiplies a channel is what rounding meets.
        weight_OI = model.weights["blocks.1.q"] * model.weights["blocks.1.attention_norm"]
        size_I = weight_OI.square().mean(0).sqrt()
        return float(size_I.max() / size_I.mean())

    assert peak(dense) > 3
    assert peak(turned) < 1.5


def test_scaling_lowers_what_rounding_to_nearest_costs() -> None:
    dense = net_of("llama", torch.float32)

    def cost(model: Supernet) -> float:
        moments = MomentStream(model, tokens()).advance(0)
        total = 0.0
        for name, shared in (("q", "q"), ("up", "gate")):
            weight_OI = model.weights[f"blocks.0.{name}"].numpy()
            codec = UniformCodec()
            error_OI = codec.decode(codec.encode(weight_OI), 3) - weight_OI
            total += float(np.einsum("oi,ij,oj->", error_OI, moments[shared], error_OI))
        return total

    assert cost(TRANSFORMS["scaled"](dense, tokens())) < 0.8 * cost(dense)
