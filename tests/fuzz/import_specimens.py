"""Small models in files of other projects, with the place of every number that says a size."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np

#: The numbers of one tiny Llama; those of the vocabulary are the pieces below.
HIDDEN, FFN, BLOCKS, HEADS, GROUPS, CONTEXT = 16, 32, 2, 4, 2, 64
PIECES = ["<unk>", "<s>", "</s>", "<0x41>", "▁", "a", "b", "ab", "▁a", "▁ab", "c"]
_KINDS = ("attention_norm", "q", "k", "v", "o", "mlp_norm", "gate", "down", "up")


class Fields:
    """Bytes in the making, and where their numbers lie: `(offset, bytes)`."""

    def __init__(self) -> None:
        self.content = bytearray()
        self.places: list[tuple[int, int]] = []

    def number(self, form: str, value: float) -> None:
        """Append a number whose place is kept."""
        self.places.append((len(self.content), struct.calcsize(form)))
        self.content += struct.pack(form, value)

    def text(self, value: str) -> None:
        """Append a length and a text of GGUF."""
        raw = value.encode()
        self.number("<Q", len(raw))
        self.content += raw


def _shapes() -> dict[str, tuple[int, ...]]:
    """Tensors of the model by their names in a GGUF file, rows first."""
    head = HIDDEN // HEADS
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (len(PIECES), HIDDEN)}
    for block in range(BLOCKS):
        for name, shape in {
            "attn_norm": (HIDDEN,), "attn_q": (HIDDEN, HIDDEN), "attn_k": (GROUPS * head, HIDDEN),
            "attn_v": (GROUPS * head, HIDDEN), "attn_output": (HIDDEN, HIDDEN),
            "ffn_norm": (HIDDEN,), "ffn_gate": (FFN, HIDDEN), "ffn_up": (FFN, HIDDEN),
            "ffn_down": (HIDDEN, FFN),
        }.items():  # fmt: skip
            shapes[f"blk.{block}.{name}.weight"] = shape
    return {**shapes, "output_norm.weight": (HIDDEN,)}


def _value(file: Fields, value: object) -> None:
    """A value of the metadata behind its type."""
    match value:
        case bool():
            file.number("<I", 7)
            file.number("<B", value)
        case int() if 0 <= value < 1 << 32:
            file.number("<I", 4)
            file.number("<I", value)
        case int():
            file.number("<I", 11)
            file.number("<q", value)
        case float():
            file.number("<I", 6)
            file.number("<f", value)
        case str():
            file.number("<I", 8)
            file.text(value)
        case list():
            file.number("<I", 9)
            kind, form = {str: (8, ""), int: (5, "<i"), float: (6, "<f"), bool: (7, "<?")}[
                type(value[0]) if value else int
            ]
            file.number("<I", kind)
            file.number("<Q", len(value))
            for one in value:
                file.text(one) if kind == 8 else file.number(form, one)


def gguf_metadata(by_scores: bool) -> dict[str, object]:
    """Metadata of the model, its tokenizer a merger by scores or one of bytes."""
    tokenizer = (
        {"model": "llama", "scores": [-float(place) for place in range(len(PIECES))],
         "add_space_prefix": True}
        if by_scores
        else {"model": "gpt2", "pre": "smollm", "merges": ["a b", "▁ a", "▁ ab"]}
    )  # fmt: skip
    kinds = [2, 3, 3, 6, *[1] * (len(PIECES) - 5), 4]
    tokenizer |= {"tokens": PIECES, "token_type": kinds, "bos_token_id": 1, "eos_token_id": 2,
                  "add_bos_token": True}  # fmt: skip
    return {
        "general.architecture": "llama", "general.alignment": 32,
        "llama.block_count": BLOCKS, "llama.context_length": CONTEXT,
        "llama.embedding_length": HIDDEN, "llama.feed_forward_length": FFN,
        "llama.attention.head_count": HEADS, "llama.attention.head_count_kv": GROUPS,
        "llama.attention.layer_norm_rms_epsilon": 1e-5, "llama.rope.freq_base": 1e4,
        **{f"tokenizer.ggml.{name}": value for name, value in tokenizer.items()},
        "tokenizer.chat_template": "{{ messages[0].content }}",
    }  # fmt: skip


def gguf_file(path: Path, metadata: dict[str, object]) -> Fields:
    """A GGUF file of F32 and Q8_0 with these metadata."""
    file, shapes = Fields(), _shapes()
    file.content += b"GGUF"
    file.number("<I", 3)
    file.number("<Q", len(shapes))
    file.number("<Q", len(metadata))
    for key, value in metadata.items():
        file.text(key)
        _value(file, value)
    data = bytearray()
    for name, shape in shapes.items():
        # Rows of 32 as Q8_0, all others as they are.
        kind = 8 if shape[-1] == 32 else 0
        file.text(name)
        file.number("<I", len(shape))
        for size in reversed(shape):
            file.number("<Q", size)
        file.number("<I", kind)
        file.number("<Q", len(data))
        count = int(np.prod(shape))
        data += bytes(count // 32 * 34) if kind == 8 else np.ones(count, "<f4").tobytes()
        data += bytes(-len(data) % 32)
    file.content += bytes(-len(file.content) % 32) + data
    path.write_bytes(file.content)
    return file


def llama2c_files(path: Path) -> Fields:
    """A `.bin` of llama2.c, with its tokenizer beside it."""
    file = Fields()
    for number in (HIDDEN, FFN, BLOCKS, HEADS, GROUPS, len(PIECES), CONTEXT):
        file.number("<i", number)
    head = HIDDEN // HEADS
    sizes = {"attention_norm": HIDDEN, "mlp_norm": HIDDEN, "q": HIDDEN**2, "o": HIDDEN**2,
             "k": GROUPS * head * HIDDEN, "v": GROUPS * head * HIDDEN, "gate": FFN * HIDDEN,
             "down": FFN * HIDDEN, "up": FFN * HIDDEN}  # fmt: skip
    count = len(PIECES) * HIDDEN + BLOCKS * sum(sizes[kind] for kind in _KINDS)
    count += HIDDEN + CONTEXT * head
    file.content += np.ones(count, "<f4").tobytes()
    path.write_bytes(file.content)
    tokenizer = Fields()
    tokenizer.number("<i", 9)
    for place, piece in enumerate(PIECES):
        raw = piece.encode()
        tokenizer.number("<f", -float(place))
        tokenizer.number("<i", len(raw))
        tokenizer.content += raw
    path.with_name("tokenizer.bin").write_bytes(tokenizer.content)
    return file


def lora_folder(folder: Path) -> None:
    """An adapter of PEFT for the down projection of block 1 of `checkpoint_folder`."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "bias": "none", "use_rslora": True}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    module = "base_model.model.model.layers.1.mlp.down_proj"
    halves = {f"{module}.lora_A.weight": torch.ones(2, FFN),
              f"{module}.lora_B.weight": torch.ones(HIDDEN, 2)}  # fmt: skip
    save_file(halves, folder / "adapter_model.safetensors")
