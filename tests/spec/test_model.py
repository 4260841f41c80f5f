"""`ModelSpec` checks itself and counts its tensors."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from pliant.errors import UnsupportedError
from pliant.spec import BLOCK_MATRICES, ModelSpec, Rope

SIZES: dict[str, Any] = {
    "architecture": "llama",
    "vocab_size": 11,
    "hidden_size": 6,
    "num_blocks": 2,
    "num_heads": 6,
    "num_groups": 2,
    "head_dim": 4,
    "ffn_size": 10,
    "max_context": 16,
    "attention_scale": 0.5,
}


def test_json_round_trip() -> None:
    spec = ModelSpec(**SIZES, ropes=(Rope(), Rope(base=5.0)), block_ropes=(1, -1))
    assert msgspec.json.decode(msgspec.json.encode(spec), type=ModelSpec) == spec


def test_matrix_shapes_of_a_cut() -> None:
    spec = ModelSpec(**SIZES)
    shapes = {matrix: spec.matrix_shape(matrix, 1, 7) for matrix in BLOCK_MATRICES}
    assert shapes == {"q": (12, 6), "k": (4, 6), "v": (4, 6), "o": (6, 12),
                      "gate": (7, 6), "up": (7, 6), "down": (6, 7)}  # fmt: skip


def test_tensors_follow_the_features() -> None:
    plain = ModelSpec(**SIZES, tied_embeddings=True).tensors()
    assert next(iter(plain)) == "embedding"
    assert list(plain)[-1] == "final_norm"
    assert "head" not in plain
    assert len(plain) == 2 + 2 * 9
    rich = ModelSpec(
        **SIZES, qkv_bias=True, o_bias=True, mlp_bias=True, qk_norm=True, post_norms=True
    ).tensors()
    assert len(rich) == 3 + 2 * (7 + 7 + 4 + 2)
    assert rich["blocks.1.o.bias"] == (6,)
    assert rich["blocks.1.k_norm"] == (4,)


@pytest.mark.parametrize(
    "fields",
    [
        {"vocab_size": 0},
        {"num_groups": 4},
        {"head_dim": 3},
        {"block_windows": (0,)},
        {"block_ropes": (0, 1)},
        {"attention_scale": 0.0},
        {"norm_epsilon": float("nan")},
        {"logit_softcap": -1.0},
        {"block_windows": (0, -2)},
        {"num_blocks": 10**12},
        {"num_heads": 2**20, "num_groups": 2**20, "head_dim": 2**20},
    ],
)
def test_senseless_specs_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError):
        ModelSpec(**{**SIZES, **fields})
