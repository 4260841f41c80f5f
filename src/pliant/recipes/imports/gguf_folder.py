"""`gguf_folder`: a GGUF file of plain numbers as a Hugging Face folder that a build reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pliant.errors import CheckpointError, UnsupportedError
from pliant.export.gguf_metadata import gguf_tensor_name
from pliant.export.shard_file import write_shard
from pliant.measurement import Progress, silent
from pliant.recipes.imports.gguf_reader import GgufFile
from pliant.recipes.imports.gguf_tokenizer import special_token_ids, tokenizer_of
from pliant.spec import ModelSpec, read_spec
from pliant.spec.checkpoint_names import checkpoint_names

_CLASSES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}


def gguf_folder(path: Path, folder: Path, progress: Progress = silent) -> Path:
    """Write the model of the file `path` into `folder`, weights as float32; returns `folder`.

    The same file gives the same bytes. Read are Llama, Qwen 2 and Qwen 3 with tensors of F32, F16,
    BF16 and Q8_0; `UnsupportedError` for others, `CheckpointError` for a file that is damaged or
    lies about its sizes. Nothing is written before all of them are checked.
    """
    file = GgufFile(path)
    config = _config(file)
    spec = read_spec(config)
    _check_tensors(file, spec)
    tokenizer = tokenizer_of(file.metadata, spec.vocab_size)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(folder / "tokenizer_config.json", _tokenizer_config(file.metadata))
    _write_json(folder / "config.json", config)
    theirs = checkpoint_names(spec)
    ours = {theirs[name]: name for name in theirs}
    shapes = {theirs[name]: shape for name, shape in spec.tensors().items()}
    is_llama = file.metadata["general.architecture"] == "llama"
    done = 0

    def make(name: str) -> NDArray[np.float32]:
        nonlocal done
        done += 1
        progress("reading", done, len(shapes))
        value = file.tensor(gguf_tensor_name(ours[name]))
        order = halved_rows(spec, ours[name]) if is_llama else None
        return value if order is None else value[order]

    write_shard(folder / "model.safetensors", shapes, "float32", make)
    return folder


def _config(file: GgufFile) -> dict[str, Any]:
    """The config.json that the metadata stand for."""
    arch = file.metadata.get("general.architecture")
    if not isinstance(arch, str) or arch not in _CLASSES:
        raise UnsupportedError(
            f"{file.path} is a {str(arch)[:40]!r}; a build reads GGUF files of "
            f"{', '.join(_CLASSES)}. Build from the Hugging Face folder of the model."
        )
    _refuse(file, str(arch))
    heads = _number(file, f"{arch}.attention.head_count", int)
    hidden = _number(file, f"{arch}.embedding_length", int)
    if heads < 1 or "token_embd.weight" not in file.tensors:
        raise CheckpointError(f"{file.path} has no heads or no token_embd.weight; get it again.")
    kind = _model_type(file, str(arch))
    return {
        "architectures": [_CLASSES[kind]],
        "model_type": kind,
        "vocab_size": file.tensors["token_embd.weight"].shape[0],
        "hidden_size": hidden,
        "intermediate_size": _number(file, f"{arch}.feed_forward_length", int),
        "num_hidden_layers": _number(file, f"{arch}.block_count", int),
        "num_attention_heads": heads,
        "num_key_value_heads": _number(file, f"{arch}.attention.head_count_kv", int, heads),
        "head_dim": _number(file, f"{arch}.attention.key_length", int, hidden // heads),
        "max_position_embeddings": _number(file, f"{arch}.context_length", int),
        "rms_norm_eps": _number(file, f"{arch}.attention.layer_norm_rms_epsilon", float),
        "rope_theta": _number(file, f"{arch}.rope.freq_base", float, 10_000.0),
        "hidden_act": "silu",
        "attention_bias": kind == "llama" and "blk.0.attn_q.bias" in file.tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in file.tensors,
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "bos_token_id": file.metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": file.metadata.get("tokenizer.ggml.eos_token_id"),
        "torch_dtype": "float32",
    }


def _refuse(file: GgufFile, arch: str) -> None:
    """Raise `UnsupportedError` for what a config cannot be made of."""
    if file.metadata.get(f"{arch}.rope.scaling.type", "none") != "none" or (
        "rope_freqs.weight" in file.tensors
    ):
        raise UnsupportedError(
            f"{file.path} scales its rotation, of which a GGUF file keeps too little. Build from "
            "the Hugging Face folder of the model."
        )
    if f"{arch}.expert_count" in file.metadata:
        raise UnsupportedError(f"{file.path} is a mixture of experts, which is not supported.")


def _model_type(file: GgufFile, arch: str) -> str:
    """The architecture; a Llama with biases of q, k and v alone is a Qwen 2 in all but name."""
    has_qkv = "blk.0.attn_q.bias" in file.tensors
    return "qwen2" if arch == "llama" and has_qkv and (
        "blk.0.attn_output.bias" not in file.tensors
    ) else arch  # fmt: skip


def _number(file: GgufFile, key: str, kind: type, default: Any = None) -> Any:
    value = file.metadata.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, kind)):
        raise CheckpointError(
            f"{key} of {file.path} is {str(value)[:40]!r}; a single number is expected."
        )
    return value


def _check_tensors(file: GgufFile, spec: ModelSpec) -> None:
    """Every tensor of the spec is there in its shape, and no other."""
    expected = {gguf_tensor_name(name): shape for name, shape in spec.tensors().items()}
    for name, shape in expected.items():
        found = file.tensors.get(name)
        if found is None or found.shape != shape:
            state = "is not there" if found is None else f"has the shape {list(found.shape)}"
            raise CheckpointError(
                f"{name} of {file.path} {state}; {list(shape)} follows from its metadata."
            )
    extra = sorted(set(file.tensors) - set(expected))
    if extra:
        raise UnsupportedError(
            f"{file.path} holds {extra[0][:80]}, which a {spec.architecture} does not use; it is "
            "another kind of model."
        )


def halved_rows(spec: ModelSpec, name: str) -> NDArray[np.int64] | None:
    """Which row of a file whose pairs are neighbours comes n-th in a checkpoint's halves."""
    tensor = name.removesuffix(".bias").rsplit(".", 1)[-1]
    if tensor not in ("q", "k"):
        return None
    heads = spec.num_heads if tensor == "q" else spec.num_groups
    rows = np.arange(heads * spec.head_dim).reshape(heads, spec.head_dim // 2, 2)
    return rows.swapaxes(1, 2).reshape(-1)


def _tokenizer_config(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Names of the special tokens, and the chat template."""
    tokens = metadata["tokenizer.ggml.tokens"]
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    for name, index in special_token_ids(metadata, len(tokens)).items():
        config[f"{name}_token"] = tokens[index]
    template = metadata.get("tokenizer.chat_template")
    return {**config, "chat_template": template} if isinstance(template, str) else config


def _write_json(path: Path, content: Any) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8")
