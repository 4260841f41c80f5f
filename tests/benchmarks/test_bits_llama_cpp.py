"""llama.cpp's types on our weights, where an interpreter with it is named."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from bits_llama_cpp import BLOCK_TYPES, FILE_TYPES, STORED, quantized_by_llama_cpp

PYTHON = os.environ.get("PLIANT_PEER_PYTHON", "")
CONFIG = {
    "model_type": "llama", "vocab_size": 64, "hidden_size": 128, "intermediate_size": 352,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 1e4,
    "tie_word_embeddings": True,
}  # fmt: skip
SHAPES = {"q": (128, 128), "k": (64, 128), "v": (64, 128), "o": (128, 128),
          "gate": (352, 128), "up": (352, 128), "down": (128, 352)}  # fmt: skip


@pytest.mark.skipif(not PYTHON, reason="PLIANT_PEER_PYTHON names no interpreter with llama.cpp")
def test_every_type_is_near_the_weights_at_the_bits_it_states(monkeypatch):
    # The types of IQ2 take seconds to make their tables.
    monkeypatch.setattr("bits_llama_cpp.BLOCK_TYPES", [t for t in BLOCK_TYPES if "IQ2" not in t])
    draw = np.random.default_rng(0)
    names = {f"blocks.{block}.{name}": shape for block in range(2)
             for name, shape in SHAPES.items()}  # fmt: skip
    weights = {n: draw.normal(0, 0.05, shape).astype(np.float32) for n, shape in names.items()}
    importance = {name: draw.random(shape[1]) + 0.5 for name, shape in names.items()}
    errors, bits = {}, {}
    for method, stated, found in quantized_by_llama_cpp(PYTHON, CONFIG, weights, importance):
        assert set(found) == set(weights)
        ratios = [np.square(found[n].numpy() - w).sum() / np.square(w).sum()
                  for n, w in weights.items()]  # fmt: skip
        errors[method], bits[method] = float(np.mean(ratios)), stated
    assert set(errors) >= {*FILE_TYPES, *(f"{kind} stored" for kind in STORED)}
    assert bits["Q4_0"] == bits["Q4_K alone"] == bits["IQ4_NL alone"] == 4.5
    assert bits["Q2_K alone"] == 2.625 and bits["TQ2_0"] == 2.0625
    # A mix gives some matrices more, and rows of 128 fall back to blocks of 32.
    assert bits["Q2_K"] > 2.625 and bits["Q2_K stored"] >= 4.5
    assert errors["Q5_K alone"] < errors["Q4_K alone"] < errors["Q3_K alone"] < errors["Q2_K alone"]
    assert errors["Q2_K alone"] < 0.15 and errors["IQ3_S alone"] < errors["Q3_K alone"]
