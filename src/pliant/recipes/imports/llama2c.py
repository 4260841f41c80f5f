"""`llama2c_folder`: a `.bin` of the llama2.c project as a Hugging Face folder that a build reads.

The file is a header of seven int32 and then all weights as fp32, kind by kind over all blocks; a
vocabulary size below 0 says that the head is a matrix of its own. Pairs of rotation are neighbours.
The tokenizer lies in a file of its own: scores, lengths and bytes of SentencePiece pieces.
"""

from __future__ import annotations

import json
import math
import mmap
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pliant.errors import CheckpointError
from pliant.export.shard_file import write_shard
from pliant.measurement import Progress, silent
from pliant.recipes.imports.gguf_folder import halved_rows
from pliant.recipes.imports.gguf_tokenizer import tokenizer_of
from pliant.recipes.imports.mapped_file import mapped
from pliant.spec import ModelSpec, read_spec
from pliant.spec.checkpoint_names import checkpoint_names

_HEADER = "<7i"
_BOS, _EOS = 1, 2
#: Pieces 0, 1 and 2 in every SentencePiece model of a Llama.
_SPECIAL = ("<unk>", "<s>", "</s>")
_UNKNOWN, _CONTROL, _NORMAL, _BYTE = 2, 3, 1, 6
#: Names of the tokenizer beside a model, the first that is there.
_TOKENIZERS = ("tokenizer.bin", "tok{vocab_size}.bin")


def llama2c_folder(path: Path, folder: Path, progress: Progress = silent) -> Path:
    """Write the model of the file `path` into `folder`, weights as float32; returns `folder`.

    Its tokenizer is `tokenizer.bin` or `tokN.bin` (N tokens) beside it. `CheckpointError` for a
    file whose size is not what its header says, and for a tokenizer that is missing or damaged;
    nothing is written before that. The same files give the same bytes.
    """
    content = mapped(path)
    config = _config(path, content)
    spec = read_spec(config)
    places = _places(path, spec, len(content))
    tokenizer = tokenizer_of(_vocabulary(path, spec.vocab_size), spec.vocab_size)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    _write_json(folder / "tokenizer_config.json",
                {"tokenizer_class": "PreTrainedTokenizerFast", **names})  # fmt: skip
    _write_json(folder / "config.json", config)
    theirs = checkpoint_names(spec)
    ours = {theirs[name]: name for name in theirs}
    shapes = {theirs[name]: shape for name, shape in spec.tensors().items()}
    done = 0

    def make(name: str) -> NDArray[np.float32]:
        nonlocal done
        done += 1
        progress("reading", done, len(shapes))
        shape = shapes[name]
        value = np.frombuffer(content, "<f4", math.prod(shape), places[ours[name]])
        order = halved_rows(spec, ours[name])
        value = value.reshape(shape).astype(np.float32)
        return value if order is None else value[order]

    write_shard(folder / "model.safetensors", shapes, "float32", make)
    return folder


def _config(path: Path, content: mmap.mmap) -> dict[str, Any]:
    """The config.json that the header stands for."""
    if len(content) < struct.calcsize(_HEADER):
        raise CheckpointError(f"{path} has {len(content)} bytes; the header alone has 28.")
    hidden, ffn, blocks, heads, groups, vocab_size, context = struct.unpack(_HEADER, content[:28])
    if min(hidden, ffn, blocks, heads, groups, abs(vocab_size), context) < 1 or hidden % heads:
        raise CheckpointError(
            f"{path} is no model of llama2.c: its header says a hidden size of {hidden}, {heads} "
            f"heads and {vocab_size} tokens. Files of version 1 and later begin otherwise; export "
            "them in the first format."
        )
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama",
        "vocab_size": abs(vocab_size), "hidden_size": hidden, "intermediate_size": ffn,
        "num_hidden_layers": blocks, "num_attention_heads": heads, "num_key_value_heads": groups,
        "head_dim": hidden // heads, "max_position_embeddings": context, "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0, "hidden_act": "silu", "tie_word_embeddings": vocab_size > 0,
        "bos_token_id": _BOS, "eos_token_id": _EOS, "torch_dtype": "float32",
    }  # fmt: skip


def _places(path: Path, spec: ModelSpec, size: int) -> dict[str, int]:
    """Where each tensor begins; `CheckpointError` where they do not fill the file."""
    shapes = spec.tensors()
    kinds = ("attention_norm", "q", "k", "v", "o", "mlp_norm", "gate", "down", "up")
    order: list[str | None] = ["embedding"]
    order += [f"blocks.{block}.{kind}" for kind in kinds for block in range(spec.num_blocks)]
    # Between the last norm and the head lie two tables of the rotation, which are computed here.
    order += ["final_norm", None, *(["head"] if not spec.tied_embeddings else [])]
    places, begin = {}, struct.calcsize(_HEADER)
    for name in order:
        if name is None:
            begin += 4 * spec.max_context * spec.head_dim
        else:
            places[name] = begin
            begin += 4 * math.prod(shapes[name])
    if begin != size:
        raise CheckpointError(
            f"{path} has {size} bytes and its header stands for {begin}; it is cut short, or not "
            "in the first format of llama2.c."
        )
    return places


def _vocabulary(path: Path, vocab_size: int) -> dict[str, Any]:
    """The tokenizer's file as the metadata that a GGUF file would have."""
    names = [name.format(vocab_size=vocab_size) for name in _TOKENIZERS]
    found = next((path.with_name(name) for name in names if path.with_name(name).is_file()), None)
    if found is None:
        raise CheckpointError(f"{path} has no tokenizer beside it: {' or '.join(names)}.")
    content = found.read_bytes()
    place = 4
    tokens: list[str] = []
    scores: list[float] = []
    for _ in range(vocab_size):
        if place + 8 > len(content):
            raise CheckpointError(f"{found} ends after {len(tokens)} of {vocab_size} tokens.")
        score, length = struct.unpack_from("<fi", content, place)
        place += 8
        if not 0 <= length <= len(content) - place:
            raise CheckpointError(f"{found} states a token of {length} bytes, which it has not.")
        try:
            tokens.append(content[place : place + length].decode().replace(" ", "▁"))
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{found} has a token that is not UTF-8: {error}.") from error
        scores.append(score)
        place += length
    tokens[:3] = _SPECIAL
    is_byte = [len(token) == 6 and token.startswith("<0x") for token in tokens]
    kinds = [_UNKNOWN, _CONTROL, _CONTROL, *(_BYTE if byte else _NORMAL for byte in is_byte[3:])]
    table = {"model": "llama", "tokens": tokens, "scores": scores, "token_type": kinds,
             "bos_token_id": _BOS, "eos_token_id": _EOS, "unknown_token_id": 0}  # fmt: skip
    return {f"tokenizer.ggml.{name}": value for name, value in table.items()}


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
