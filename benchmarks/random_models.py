"""Models of true shapes with random weights, for benchmarks of speed.

Speed does not depend on the values of weights, so an artifact of a billion of them is written in
seconds instead of built in an hour, and nothing has to be downloaded. Planes are random bits and
scales such that activations stay as large as in a trained model. Files are kept in a cache folder
under a name that changes with their content.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pliant.artifact import FORMAT_VERSION, Artifact, ArtifactWriter, Findings, SourceRecord
from pliant.bits import MAX_PLANES, EncodedMatrix, plane_bytes, scale_bytes
from pliant.spec import ModelSpec
from pliant.spec.huggingface import read_spec

ROOT = Path(__file__).parents[1]
#: Where random models are kept from run to run, unless a script is told otherwise.
CACHE = Path(tempfile.gettempdir()) / "pliant-benchmarks"


def llama_config(
    vocab_size: int,
    hidden_size: int,
    blocks: int,
    heads: int,
    groups: int,
    ffn_size: int,
    *,
    tied: bool = True,
    context: int = 8192,
    theta: float = 10_000.0,
) -> dict[str, Any]:
    """The config.json of a Llama of these numbers."""
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": vocab_size,
        "hidden_size": hidden_size, "num_hidden_layers": blocks, "num_attention_heads": heads,
        "num_key_value_heads": groups, "head_dim": hidden_size // heads,
        "intermediate_size": ffn_size, "tie_word_embeddings": tied, "hidden_act": "silu",
        "max_position_embeddings": context, "rms_norm_eps": 1e-5, "rope_theta": theta,
    }  # fmt: skip


def qwen2_config() -> dict[str, Any]:
    """The config.json of Qwen2.5-0.5B: a Llama with biases in q, k and v."""
    config = llama_config(151_936, 896, 24, 14, 2, 4864, context=32_768, theta=1e6)
    del config["head_dim"]
    return config | {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "rms_norm_eps": 1e-6,
        "use_sliding_window": False,
    }  # fmt: skip


def demo_config() -> dict[str, Any]:
    """The config.json of the demo model in this repository."""
    path = min((ROOT / "models").glob("*/config.json"))
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return config


#: The models that benchmarks run, by the name that tables give them. Llama-3.2 stretches its
#: rotation for long contexts; that changes no time and is left out.
CONFIGS: dict[str, dict[str, Any]] = {
    "tale-750k": demo_config(),
    "15M": llama_config(32_000, 288, 6, 6, 6, 768, context=8192),
    "Qwen2.5-0.5B": qwen2_config(),
    "TinyLlama-1.1B": llama_config(32_000, 2048, 22, 32, 4, 5632, tied=False, context=8192),
    "Llama-3.2-1B": llama_config(128_256, 2048, 16, 32, 8, 8192, context=131_072, theta=5e5),
}


def fingerprint(*parts: object) -> str:
    """Twelve digits that change with `parts`, which JSON can hold."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def random_artifact(
    name: str,
    config: dict[str, Any],
    planes: int = MAX_PLANES,
    cache: Path = CACHE,
    tokenizer: str = "",
) -> Artifact:
    """The artifact of a config with random planes, from the cache or written now; with a
    tokenizer.json if its text is given.
    """
    key = fingerprint(config, planes, FORMAT_VERSION, *([tokenizer] if tokenizer else []))
    path = cache / f"{name}-{key}.pliant"
    if path.exists():
        return Artifact.open(path)
    cache.mkdir(parents=True, exist_ok=True)
    random = _RandomBytes(int(key, 16))
    spec = read_spec(config)
    with ArtifactWriter(path, spec, planes=planes, fingerprint=key) as writer:
        for tensor, size in spec.tensors().items():
            if writer.is_done(tensor):
                continue
            if len(size) == 1:
                values = np.zeros if tensor.endswith(".bias") else np.ones
                writer.write_vector(tensor, values(size, np.float32))
            else:
                writer.write_matrix(tensor, random_matrix(random, size[0], size[1], planes))
        writer.write_file("config.json", json.dumps(config).encode())
        if tokenizer:
            writer.write_file("tokenizer.json", tokenizer.encode())
        return writer.finish(Findings(source=SourceRecord(f"random {name}", key)))


def random_matrix(random: _RandomBytes, rows: int, columns: int, planes: int) -> EncodedMatrix:
    """Random codes with a deviation of about 0.02; rows and columns must fill whole chunks."""
    if rows % 32 or columns % 32:
        raise ValueError(f"Random matrices have sizes in multiples of 32, not {rows} x {columns}.")
    # Codes are spread evenly over 256 steps; their deviation is 256 / sqrt(12) of a step.
    scale = np.float16(0.02 * np.sqrt(12) / 256)
    scales = np.full(scale_bytes(rows, columns) // 2, scale.view(np.uint16))
    size = plane_bytes(rows, columns)
    return EncodedMatrix(rows, columns, [random.take(size) for _ in range(planes)], scales)


class _RandomBytes:
    """Random bytes at the speed of a copy: pieces of one pool, each from another place."""

    _POOL_BYTES = 2**24

    def __init__(self, seed: int) -> None:
        self._draw = np.random.default_rng(seed)
        self._pool = np.frombuffer(self._draw.bytes(self._POOL_BYTES), np.uint8)

    def take(self, size: int) -> NDArray[np.uint8]:
        """`size` bytes."""
        begin = int(self._draw.integers(self._POOL_BYTES))
        repeats = (begin + size) // self._POOL_BYTES + 1
        return np.tile(self._pool, repeats)[begin : begin + size]


def full_spec(name: str) -> ModelSpec:
    """The spec of a model by the name that tables give it."""
    return read_spec(CONFIGS[name])
