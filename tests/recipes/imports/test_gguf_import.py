"""GGUF files as sources of a build: what was exported comes back, and lies are found out."""

from __future__ import annotations

import os
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pliant.artifact import Artifact
from pliant.errors import CheckpointError, UnsupportedError
from pliant.export import export_gguf, plan_gguf
from pliant.models import Checkpoint
from pliant.recipes.imports import as_checkpoint, gguf_folder
from pliant.recipes.imports.gguf_reader import GgufFile
from pliant.recipes.imports.gguf_tokenizer import tokenizer_of
from pliant.runtime import Tokenizer

gguf = pytest.importorskip("gguf", reason="the package gguf of the extra `export` is missing")
sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks"))
TEXT = "Once upon a time, 12 foxes — naïve ones!\n\n"


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    from interop_models import quick_artifact, tiny_checkpoint

    folder = tmp_path_factory.mktemp("models")
    return {
        name: quick_artifact(tiny_checkpoint(name, folder / name), folder / f"{name}.pliant")
        for name in ("llama", "llama-biases", "qwen2", "qwen3", "gemma2", "llama-3")
    }


@pytest.fixture(scope="module")
def whole(artifacts: dict[str, Artifact], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "whole.gguf"
    export_gguf(plan_gguf(artifacts["llama"], "d1-w0.5-b7"), "d1-w0.5-b7", path)
    return path


@pytest.mark.parametrize(
    ("name", "address", "kind"),
    [("llama", "", "F32"), ("llama-biases", "d2-b7", "exact"), ("qwen2", "d2-w0.5", "F16"),
     ("qwen2", "d2", "F32"), ("qwen3", "d2", "BF16")],
)  # fmt: skip
def test_weights_and_texts_come_back(
    name: str, address: str, kind: str, artifacts: dict[str, Artifact], tmp_path: Path
) -> None:
    plan = plan_gguf(artifacts[name], address, kind)
    export_gguf(plan, address, tmp_path / "out.gguf")
    checkpoint = Checkpoint.open(gguf_folder(tmp_path / "out.gguf", tmp_path / "back"))
    rounding = {"F16": 2.0**-11, "BF16": 2.0**-8}.get(kind, 0.0)
    for tensor, expected in plan.weights.tensors():
        found = checkpoint.tensor(tensor).numpy()
        limit = rounding * np.abs(expected) + (2.0**-25 if rounding else 0)
        assert (np.abs(found - expected) <= limit).all(), tensor
    ours, theirs = Tokenizer.load(artifacts[name].path), Tokenizer.load(tmp_path / "back")
    assert ours.encode(TEXT) == theirs.encode(TEXT)
    conversation = [{"role": "user", "content": "hello"}]
    assert ours.apply_chat_template(conversation) == theirs.apply_chat_template(conversation)
    assert (ours.bos_id, ours.eos_ids) == (theirs.bos_id, theirs.eos_ids)


def test_a_merger_by_scores_comes_back(shared_models: Path, tmp_path: Path) -> None:
    from interop_models import quick_artifact

    artifact = quick_artifact(shared_models / "stories260K", tmp_path / "a.pliant")
    export_gguf(plan_gguf(artifact, "", "F32"), "", tmp_path / "out.gguf")
    folder = gguf_folder(tmp_path / "out.gguf", tmp_path / "back")
    ours, theirs = Tokenizer.load(artifact.path), Tokenizer.load(folder)
    for text in (TEXT, "  two  spaces", "Lily and Tom went to the park 😀", ""):
        assert ours.encode(text) == theirs.encode(text)
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text))


def test_the_folder_is_made_for_the_build_and_removed(whole: Path, tmp_path: Path) -> None:
    with as_checkpoint(str(whole), tmp_path / "x.pliant") as source:
        first = Checkpoint.open(source).fingerprint
    with as_checkpoint(str(whole), tmp_path / "x.pliant") as source:
        assert Checkpoint.open(source).fingerprint == first
    assert not any(tmp_path.iterdir())
    with as_checkpoint("org/name", tmp_path / "x.pliant") as source:
        assert source == "org/name"


@pytest.mark.parametrize("name", ["gemma2", "llama-3"])
def test_what_a_file_keeps_too_little_of(
    name: str, artifacts: dict[str, Artifact], tmp_path: Path
) -> None:
    export_gguf(plan_gguf(artifacts[name], "d2", "F32"), "d2", tmp_path / "out.gguf")
    with pytest.raises(UnsupportedError, match="Hugging Face folder"):
        gguf_folder(tmp_path / "out.gguf", tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_quantized_types_are_refused_by_name(artifacts: Any, tmp_path: Path) -> None:
    export_gguf(plan_gguf(artifacts["llama"], "d1-b3"), "d1-b3", tmp_path / "out.gguf")
    with pytest.raises(UnsupportedError, match="before it was quantized"):
        GgufFile(tmp_path / "out.gguf")


def header(num_tensors: int, num_keys: int, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, num_tensors, num_keys) + rest


def tensor_entry(sizes: list[int], kind: int = 0, offset: int = 0) -> bytes:
    name = b"token_embd.weight"
    shape = struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes)
    return struct.pack("<Q", len(name)) + name + shape + struct.pack("<IQ", kind, offset)


KEY = struct.pack("<Q", 1) + b"k"
LIES = {
    "empty": b"",
    "not a file of this kind": b"PK\x03\x04" + bytes(64),
    "cut within its head": b"GGUF\x03\x00",
    "2^64 - 1 keys": header(0, 2**64 - 1, bytes(64)),
    "2^60 tensors": header(2**60, 0, bytes(64)),
    "a key of 2^63 bytes": header(0, 1, struct.pack("<Q", 2**63) + bytes(32)),
    "an array of 2^61 numbers": header(0, 1, KEY + struct.pack("<IIQ", 9, 10, 2**61) + bytes(32)),
    "an array of 2^40 texts": header(0, 1, KEY + struct.pack("<IIQ", 9, 8, 2**40) + bytes(32)),
    "arrays in arrays": header(0, 1, KEY + struct.pack("<IIQ", 9, 9, 1) + bytes(32)),
    "a value of no type": header(0, 1, KEY + struct.pack("<I", 77) + bytes(32)),
    "a key twice": header(0, 2, 2 * (KEY + struct.pack("<IB", 0, 1)) + bytes(32)),
    "a text that is no text": header(0, 1, struct.pack("<Q", 2) + b"\xff\xfe" + bytes(32)),
    "2^32 - 1 dimensions": header(1, 0, struct.pack("<Q", 1) + b"t" + b"\xff" * 32),
    "a tensor of 2^126 weights": header(1, 0, tensor_entry([2**63, 2**63])),
    "a tensor of none": header(1, 0, tensor_entry([0, 4])),
    "a tensor behind the end": header(1, 0, tensor_entry([4], offset=2**62) + bytes(32)),
    "half a block": header(1, 0, tensor_entry([33], kind=8) + bytes(64)),
    "a tensor twice": header(2, 0, 2 * tensor_entry([1]) + bytes(64)),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_lies_about_sizes_are_refused(lie: str, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(LIES[lie])
    with pytest.raises(CheckpointError):
        GgufFile(path)


def test_an_architecture_that_is_no_text_is_refused(tmp_path: Path) -> None:
    key = struct.pack("<Q", 20) + b"general.architecture" + struct.pack("<IIQI", 9, 4, 1, 7)
    (tmp_path / "x.gguf").write_bytes(header(0, 1, key))
    with pytest.raises(UnsupportedError, match="a build reads GGUF files of"):
        gguf_folder(tmp_path / "x.gguf", tmp_path / "back")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.gguf")
    with pytest.raises(CheckpointError, match="not a regular file"):
        GgufFile(tmp_path / "x.gguf")


def metadata_of(tokens: list[str]) -> dict[str, Any]:
    scores = [-float(place) for place in range(len(tokens))]
    table = {"model": "llama", "tokens": tokens, "scores": scores, "bos_token_id": 1}
    return {f"tokenizer.ggml.{name}": value for name, value in table.items()}


@pytest.mark.parametrize("name", ["<s>", "$A", "$B", "$A:1", "a b", "a:9", "", "<s> <s>"])
def test_a_first_token_of_any_name_stands_first(name: str) -> None:
    """Its name may be a word of the language of templates."""
    backend = tokenizer_of(metadata_of(["<unk>", name, "▁", "a", "▁a"]), 5)
    assert backend.encode("a").ids == [1, 4]


def test_tokens_too_long_to_be_pieces_are_refused(tmp_path: Path) -> None:
    """Every cut of a token is looked up, which would take a day."""
    with pytest.raises(CheckpointError, match="longer than any pieces"):
        tokenizer_of(metadata_of(["<unk>", "<s>", "a" * (1 << 20)]), 3)
