"""Frequencies and amplitudes are those of `transformers`, for every kind and many sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pliant.errors import UnsupportedError
from pliant.spec import Rope, read_spec


def rope_of(parameters: dict[str, Any], head_dim: int, max_context: int) -> Rope:
    config = {"model_type": "llama", "vocab_size": 7, "hidden_size": 8, "intermediate_size": 8,
              "num_hidden_layers": 1, "num_attention_heads": 1, "head_dim": head_dim,
              "max_position_embeddings": max_context, "rope_parameters": parameters}  # fmt: skip
    (rope,) = read_spec(config).ropes
    return rope


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
CASES: list[tuple[dict[str, Any], int]] = [
    ({"rope_type": "default", "rope_theta": 1e4}, 2048),
    ({"rope_type": "default", "rope_theta": 1e6}, 2048),
    ({"rope_type": "linear", "factor": 3.5, "rope_theta": 1e4}, 4096),
    ({"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}, 64),
    ({**LLAMA3, "rope_theta": 5e5, "original_max_position_embeddings": 8192}, 131072),
    ({**LLAMA3, "factor": 32.0, "rope_theta": 1e4, "original_max_position_embeddings": 100}, 800),
    ({**LLAMA3, "rope_theta": 1e4}, 512),
    ({"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e6,
      "original_max_position_embeddings": 32768}, 131072),
    ({"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}, 256),
    ({"rope_type": "yarn", "factor": None, "rope_theta": 1e4,
      "original_max_position_embeddings": 64}, 512),
    ({"rope_type": "yarn", "factor": 16.0, "rope_theta": 1e4, "truncate": False,
      "beta_fast": 20.0, "beta_slow": 2.0, "original_max_position_embeddings": 300}, 4800),
    ({"rope_type": "yarn", "factor": 40.0, "rope_theta": 1e4, "mscale": 0.8,
      "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096}, 163840),
    ({"rope_type": "yarn", "factor": 40.0, "rope_theta": 1e4, "mscale": 1.0,
      "original_max_position_embeddings": 4096}, 163840),
    ({"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4, "attention_factor": 0.7,
      "original_max_position_embeddings": 4096}, 8192),
    # So short that the ramp is upside down: no pair turns even once.
    ({"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4,
      "original_max_position_embeddings": 2}, 4),
    # So short that both ends of the ramp are pair 0.
    ({"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4,
      "original_max_position_embeddings": 6}, 12),
]  # fmt: skip


@pytest.mark.parametrize("head_dim", [6, 18, 64, 128, 256])
@pytest.mark.parametrize(("parameters", "max_context"), CASES)
def test_equal_to_transformers(parameters: dict[str, Any], max_context: int, head_dim: int) -> None:
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = rope_of(parameters, head_dim, max_context)
    config = transformers.LlamaConfig(
        hidden_size=head_dim, num_attention_heads=1, head_dim=head_dim,
        max_position_embeddings=max_context, rope_parameters=dict(parameters),
    )  # fmt: skip
    for context in (1, max_context, max_context + 1, 5 * max_context):
        if parameters["rope_type"] == "default":
            from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

            expected, amplitude = LlamaRotaryEmbedding.compute_default_rope_parameters(config)
        else:
            compute = ROPE_INIT_FUNCTIONS[parameters["rope_type"]]
            expected, amplitude = compute(config, None, seq_len=context)
        ours = rope.frequencies(head_dim, context)
        assert ours.dtype == np.float32
        assert ours.shape == (head_dim // 2,)
        # A few roundings of float32, in another order.
        np.testing.assert_allclose(ours, expected.numpy(), rtol=1e-6)
        assert rope.amplitude == pytest.approx(amplitude, rel=1e-12)


def test_first_pair_turns_one_radian_per_token() -> None:
    frequencies = Rope().frequencies(4, 10)
    np.testing.assert_allclose(frequencies, [1.0, 0.01], rtol=1e-6)


@pytest.mark.parametrize(
    "fields",
    [
        {"base": 1.0},
        {"base": float("nan")},
        {"kind": "linear", "factor": 0.5},
        {"kind": "linear", "factor": float("inf")},
        {"kind": "dynamic", "factor": 2.0},
        {"kind": "llama3", "factor": 2.0, "original_context": 8, "high_frequency_factor": 1.0},
        {"kind": "yarn", "factor": 2.0, "original_context": 8, "beta_slow": 0.0},
        {"kind": "yarn", "factor": 2.0, "original_context": 8, "mscale": float("nan")},
        {"kind": "yarn", "factor": 2.0, "original_context": 10**400},
    ],
)
def test_senseless_ropes_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError):
        Rope(**fields)
