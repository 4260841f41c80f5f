"""From trained weights to a checkpoint folder that `transformers` and pliant load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from pliant.data import DOCUMENT_SEPARATOR
from pliant.models import Supernet
from pliant.recipes.train_demo.config import DemoShape

_GENERATION: dict[str, Any] = {
    "bos_token_id": 0,
    "eos_token_id": 0,
    "do_sample": True,
    "temperature": 0.7,
    "top_p": 0.95,
    "max_new_tokens": 256,
}


def export_checkpoint(
    model: Supernet, shape: DemoShape, tokenizer: Path, folder: Path, model_name: str
) -> None:
    """Write bfloat16 weights, configs and the tokenizer; each file replaces its old one whole."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "config.json", shape.huggingface_config())
    _write_json(folder / "generation_config.json", _GENERATION)
    _write_json(folder / "tokenizer_config.json", _tokenizer_config(shape.context))
    (folder / "tokenizer.json").write_bytes(tokenizer.read_bytes())
    weights = {
        name: tensor.to(torch.bfloat16).contiguous()
        for name, tensor in model.to_checkpoint_tensors().items()
    }
    partial = folder / "model.safetensors.partial"
    save_file(weights, partial, metadata={"format": "pt", "name": model_name})
    # safetensors writes files that only their owner can read.
    partial.chmod(0o644)
    partial.replace(folder / "model.safetensors")


def _tokenizer_config(context: int) -> dict[str, Any]:
    separator = {
        "content": DOCUMENT_SEPARATOR,
        "lstrip": False,
        "normalized": False,
        "rstrip": False,
        "single_word": False,
        "special": True,
    }
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "added_tokens_decoder": {"0": separator},
        "bos_token": DOCUMENT_SEPARATOR,
        "eos_token": DOCUMENT_SEPARATOR,
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
