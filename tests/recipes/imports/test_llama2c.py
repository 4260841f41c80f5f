"""A `.bin` of llama2.c as a source of a build: weights and texts come back, lies are found out."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch

from pliant.errors import CheckpointError
from pliant.models import Checkpoint
from pliant.recipes.imports import as_checkpoint, llama2c_folder
from pliant.runtime import Tokenizer

TEXTS = ("Once upon a time", "  two  spaces", "Lily and Tom, 12 foxes 😀", "")
KINDS = ("attention_norm", "q", "k", "v", "o", "mlp_norm", "gate", "down", "up")


def neighbours(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of q or k with the pairs of rotation beside each other, as llama2.c has them."""
    size = weight.shape[0] // heads
    return weight.view(heads, 2, size // 2, -1).transpose(1, 2).reshape(weight.shape)


def write_model(checkpoint: Path, path: Path, own_head: bool = False) -> None:
    """A file in the first format, with its tokenizer beside it."""
    source = Checkpoint.open(checkpoint)
    spec = source.spec
    header = [spec.hidden_size, spec.ffn_size, spec.num_blocks, spec.num_heads, spec.num_groups,
              -spec.vocab_size if own_head else spec.vocab_size, spec.max_context]  # fmt: skip
    parts = [source.tensor("embedding")]
    for kind in KINDS:
        for block in range(spec.num_blocks):
            weight = source.tensor(f"blocks.{block}.{kind}")
            heads = {"q": spec.num_heads, "k": spec.num_groups}.get(kind)
            parts.append(neighbours(weight, heads) if heads else weight)
    parts += [source.tensor("final_norm"), torch.full((spec.max_context, spec.head_dim), 7.0)]
    parts += [2 * source.tensor("embedding")] if own_head else []
    data = b"".join(part.contiguous().numpy().tobytes() for part in parts)
    path.write_bytes(struct.pack("<7i", *header) + data)
    model = json.loads((checkpoint / "tokenizer.json").read_bytes())["model"]
    rank = {left + right: place for place, (left, right) in enumerate(model["merges"])}
    pieces = []
    for token in sorted(model["vocab"], key=model["vocab"].get):
        text = token.replace("▁", " ").encode()
        pieces.append(struct.pack("<fi", -float(rank.get(token, 1e6)), len(text)) + text)
    path.with_name("tok512.bin").write_bytes(struct.pack("<i", 9) + b"".join(pieces))


@pytest.mark.parametrize("own_head", [False, True])
def test_weights_and_texts_come_back(own_head: bool, shared_models: Path, tmp_path: Path) -> None:
    checkpoint = shared_models / "stories260K"
    write_model(checkpoint, tmp_path / "model.bin", own_head)
    with as_checkpoint(str(tmp_path / "model.bin"), tmp_path / "x.pliant") as folder:
        found, expected = Checkpoint.open(folder), Checkpoint.open(checkpoint)
        for name in expected.spec.tensors():
            assert torch.equal(found.tensor(name), expected.tensor(name)), name
        if own_head:
            assert torch.equal(found.tensor("head"), 2 * expected.tensor("embedding"))
        ours, theirs = Tokenizer.load(checkpoint), Tokenizer.load(folder)
        for text in TEXTS:
            assert ours.encode(text) == theirs.encode(text)
    assert not (tmp_path / "x.pliant.source").exists()


def test_files_that_lie(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"

    def refused(content: bytes, words: str) -> None:
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=words):
            llama2c_folder(path, tmp_path / "out")

    header = [8, 8, 1, 2, 1, 4, 16]
    size = 4 * (4 * 8 + 8 + 64 + 32 + 32 + 64 + 8 + 64 + 64 + 64 + 8 + 16 * 4)
    refused(b"abc", "header alone has 28")
    refused(struct.pack("<7i", *header) + bytes(size - 4), "bytes and its header stands for")
    refused(struct.pack("<7i", *[2**31 - 1] * 3, 1, 1, 4, 16) + bytes(64), "stands for|10000")
    refused(struct.pack("<7i", 9, *header[1:]) + bytes(size), "no model of llama2.c")
    refused(struct.pack("<7i", 8, 8, 1, 0, 1, 4, 16) + bytes(size), "no model of llama2.c")
    refused(struct.pack("<7i", *header) + bytes(size), "no tokenizer beside it")
    whole = struct.pack("<7i", *header) + bytes(size)
    tokenizer = tmp_path / "tokenizer.bin"
    piece = struct.pack("<fi", 0, 1) + b"a"
    for content, words in (
        (bytes(4) + piece, "ends after 1 of 4"),
        (bytes(4) + struct.pack("<fi", 0, 2**31 - 1) + b"a", "which it has not"),
        (bytes(4) + struct.pack("<fi", 0, -5) + b"a", "which it has not"),
        (bytes(4) + 4 * (struct.pack("<fi", 0, 1) + b"\xff"), "not UTF-8"),
    ):
        tokenizer.write_bytes(content)
        refused(whole, words)
    assert not (tmp_path / "out").exists()
