"""Tiny random models of every architecture, as checkpoints and as artifacts, for interop checks.

What an export must keep is the function, and a random model has one as much as a trained one. The
models have awkward points where architectures have them: biases, norms of queries and keys, windows
smaller than the texts, rotation bases of their own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

from pliant.artifact import Artifact, ArtifactWriter, Findings, SourceRecord, SpecialTokens
from pliant.bits import UniformCodec
from pliant.evaluate import GOLDEN_TEXTS_FILE, golden_texts_json, record_golden_texts
from pliant.models import Checkpoint, Supernet
from pliant.recipes.build import COMPANIONS
from pliant.runtime import Engine, Tokenizer
from pliant.shape import DepthPath
from pliant.shape.depth import DepthChoice
from pliant.spec import read_spec

TRAINING_TEXT = (
    "Once upon a time there was a little fox who lived in the wood. The fox said: hello, hello! "
    "It was 12345 o'clock; café, naïve.\n\n"
) * 8
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_COMMON: dict[str, Any] = {
    "vocab_size": 384, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "rms_norm_eps": 1e-5,
    "max_position_embeddings": 192, "hidden_act": "silu", "tie_word_embeddings": False,
    "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": None, "rope_theta": 10_000.0,
}  # fmt: skip
_GEMMA = {
    "query_pre_attn_scalar": 32, "sliding_window": 16, "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
}  # fmt: skip
_LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 32,
    "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_theta": 5e5,
}  # fmt: skip

#: Name: the class that `transformers` runs it by, and what its config changes of the common one.
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", {"model_type": "llama"}),
    "llama-3": (
        "LlamaForCausalLM",
        {"model_type": "llama", "tie_word_embeddings": True, "rope_parameters": _LLAMA3},
    ),
    "llama-biases": (
        "LlamaForCausalLM", {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    ),
    "mistral": ("MistralForCausalLM", {"model_type": "mistral", "sliding_window": None}),
    "mistral-window": ("MistralForCausalLM", {"model_type": "mistral", "sliding_window": 32}),
    "qwen2": ("Qwen2ForCausalLM", {"model_type": "qwen2", "tie_word_embeddings": True}),
    "qwen3": ("Qwen3ForCausalLM", {"model_type": "qwen3"}),
    "gemma2": ("Gemma2ForCausalLM", {"model_type": "gemma2", **_GEMMA}),
    "gemma3": (
        "Gemma3ForCausalLM", {"model_type": "gemma3_text", **_GEMMA, "num_hidden_layers": 6},
    ),
    "smollm3": ("SmolLM3ForCausalLM", {"model_type": "smollm3", "num_hidden_layers": 5}),
}  # fmt: skip


def tiny_config(name: str) -> dict[str, Any]:
    """The config.json of one of `ARCHITECTURES`."""
    class_name, changes = ARCHITECTURES[name]
    return {"architectures": [class_name], **_COMMON, **changes}


def tiny_checkpoint(name: str, folder: Path, **changes: Any) -> Path:
    """A checkpoint folder with random weights, norms and biases and a byte-level tokenizer."""
    config = {**tiny_config(name), **changes}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder)
    supernet = Supernet.initialized(read_spec(config), seed=len(name))
    draw = torch.Generator().manual_seed(len(name))
    with torch.no_grad():
        for weight in supernet.parameters():
            if weight.ndim == 2:
                weight.normal_(0, weight.shape[1] ** -0.5, generator=draw)
            else:
                weight.add_(0.2 * torch.randn(weight.shape, generator=draw))
    save_file(supernet.to_checkpoint_tensors(), folder / "model.safetensors", {"format": "pt"})
    return folder


def write_tokenizer(folder: Path) -> None:
    """A byte-level BPE with the tokens of ChatML, its chat template, and generation settings."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    backend.train_from_iterator(
        [TRAINING_TEXT],
        trainers.BpeTrainer(
            vocab_size=320, special_tokens=special, show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )  # fmt: skip
    backend.save(str(folder / "tokenizer.json"))
    names = {"bos_token": special[0], "eos_token": special[2], "chat_template": CHAT_TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    ids = {"bos_token_id": 0, "eos_token_id": 2}
    (folder / "generation_config.json").write_text(json.dumps(ids))


def quick_artifact(checkpoint: Path, path: Path, planes: int = 8) -> Artifact:
    """The artifact of a checkpoint, rounded to nearest, with blocks left out from the end."""
    source = Checkpoint.open(checkpoint)
    codec = UniformCodec().with_planes(planes)
    blocks = source.spec.num_blocks
    choices = tuple(
        DepthChoice(tuple(range(kept)), 9.0 - kept / 100) for kept in range(blocks, 0, -1)
    )
    companions = tuple(name for name in COMPANIONS if (checkpoint / name).is_file())
    with ArtifactWriter(path, source.spec, planes=planes) as writer:
        for name, tensor in source.tensors():
            value = np.ascontiguousarray(tensor.numpy())
            if value.ndim == 1:
                writer.write_vector(name, value)
            else:
                writer.write_matrix(name, codec.encode(value, name))
        for file in ("config.json", *companions):
            writer.copy_file(checkpoint / file)
        findings = Findings(
            source=SourceRecord(checkpoint.name, source.fingerprint),
            tokens=SpecialTokens(0, (2,)),
            depth_paths={"greedy": DepthPath("greedy", choices, blocks)},
            default_depth_method="greedy",
            tokenizer_files=companions,
        )
        artifact = writer.finish(findings)
    tokenizer = Tokenizer.load(path)
    with Engine(
        artifact, artifact.subnet(), threads=1, activations="float32", cache_type="float32"
    ) as engine:
        golden = record_golden_texts(engine, tokenizer, planes)
    return artifact.amend(findings, {GOLDEN_TEXTS_FILE: golden_texts_json(golden)})
