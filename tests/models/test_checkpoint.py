"""A checkpoint is read exactly, and damage or disagreement is named before any weight is read."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pliant.errors import CheckpointError, UnsupportedError
from pliant.models import Checkpoint, Supernet, read_config
from pliant.spec import read_spec

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 13,
    "hidden_size": 12,
    "intermediate_size": 10,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 32,
    "tie_word_embeddings": True,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole checkpoint in one file."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    tensors = Supernet.initialized(read_spec(CONFIG), seed=0).to_checkpoint_tensors()
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path


def change(folder: Path, **changed: torch.Tensor | None) -> None:
    """Rewrite the weights with some tensors replaced, added or (None) removed."""
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in changed.items():
        tensors.pop(name, None)
        if tensor is not None:
            tensors[name] = tensor
    save_file(tensors, folder / "model.safetensors")


def shard(folder: Path) -> None:
    """Split the single file in two, with an index."""
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, held in parts.items():
        save_file({name: tensors[name] for name in held}, folder / file)
    weight_map = {name: file for file, held in parts.items() for name in held}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    (folder / "model.safetensors").unlink()


Q = "model.layers.1.self_attn.q_proj.weight"


def test_tensors_come_in_order_and_are_float32(folder: Path) -> None:
    stored = load_file(folder / "model.safetensors")
    change(folder, **{name: tensor.bfloat16() for name, tensor in stored.items()})
    checkpoint = Checkpoint.open(folder)
    read = dict(checkpoint.tensors())
    assert list(read) == list(checkpoint.spec.tensors())
    assert all(tensor.dtype == torch.float32 for tensor in read.values())
    assert torch.equal(read["blocks.1.q"], stored[Q].bfloat16().float())


def test_a_tensor_read_is_not_a_view_of_the_file(folder: Path) -> None:
    checkpoint = Checkpoint.open(folder)
    tensor = checkpoint.tensor("blocks.1.q")
    before = tensor.clone()
    change(folder, **{Q: torch.zeros_like(before)})
    assert torch.equal(tensor, before)
    assert not checkpoint.tensor("blocks.1.q").any()


def test_shards_are_read_like_one_file(folder: Path) -> None:
    whole = dict(Checkpoint.open(folder).tensors())
    shard(folder)
    parts = dict(Checkpoint.open(folder).tensors())
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_fingerprint_knows_config_and_every_weight(folder: Path) -> None:
    first = Checkpoint.open(folder).fingerprint
    assert first == Checkpoint.open(str(folder)).fingerprint
    copy = folder / "copy"
    shutil.copytree(folder, copy, ignore=lambda *_: ["copy"])
    assert Checkpoint.open(copy).fingerprint == first
    change(copy, **{Q: load_file(copy / "model.safetensors")[Q] + 1})
    second = Checkpoint.open(copy).fingerprint
    (copy / "config.json").write_text(json.dumps({**CONFIG, "rope_theta": 5.0}))
    assert len({first, second, Checkpoint.open(copy).fingerprint}) == 3


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_infinity_name_the_tensor(folder: Path, bad: float) -> None:
    weight = load_file(folder / "model.safetensors")[Q]
    weight[3, 2] = bad
    change(folder, **{Q: weight})
    checkpoint = Checkpoint.open(folder)  # the header is fine
    with pytest.raises(CheckpointError, match=Q):
        Supernet.from_checkpoint(checkpoint)


def test_head_stored_beside_tied_embeddings(folder: Path) -> None:
    embedding = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    change(folder, **{"lm_head.weight": embedding.clone()})
    assert torch.equal(Checkpoint.open(folder).tensor("embedding"), embedding)
    change(folder, **{"lm_head.weight": embedding + 1})
    with pytest.raises(CheckpointError, match="tie_word_embeddings"):
        Checkpoint.open(folder).tensor("embedding")


def test_untied_config_without_a_head(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({**CONFIG, "tie_word_embeddings": False}))
    with pytest.raises(CheckpointError, match=r"lm_head\.weight \[13, 12\]"):
        Checkpoint.open(folder)


DISAGREEMENTS: dict[str, tuple[str, torch.Tensor | None, str]] = {
    "missing": (Q, None, Q),
    "wrong shape": (Q, torch.zeros(5, 12), r"of shape \[12, 12\].*has \[5, 12\]"),
    "wrong rank": (Q, torch.zeros(144), r"has \[144\]"),
    "a bias too many": ("model.layers.0.self_attn.q_proj.bias", torch.zeros(12), "q_proj.bias"),
    "a block too many": ("model.layers.2.mlp.up_proj.weight", torch.zeros(1), "layers.2"),
}


@pytest.mark.parametrize("case", DISAGREEMENTS)
def test_config_and_weights_that_disagree(folder: Path, case: str) -> None:
    name, tensor, message = DISAGREEMENTS[case]
    change(folder, **{name: tensor})
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(folder)


def test_integer_weights_are_refused(folder: Path) -> None:
    change(folder, **{Q: torch.zeros(12, 12, dtype=torch.int8)})
    with pytest.raises(UnsupportedError, match="I8"):
        Checkpoint.open(folder)


def test_buffers_that_old_checkpoints_store_are_ignored(folder: Path) -> None:
    change(folder, **{"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(3)})
    Checkpoint.open(folder)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        Checkpoint.open(tmp_path / "not" / "there")


def test_folder_without_config(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        read_config(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", "[" * 100_000])
def test_config_that_is_no_object(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        Checkpoint.open(folder)


def test_folder_without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no model\.safetensors"):
        Checkpoint.open(folder)


def test_pipes_are_not_waited_for(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "weights.safetensors")
    with pytest.raises(CheckpointError, match=r"no model\.safetensors"):
        Checkpoint.open(str(folder))


def test_pickles_are_refused_with_the_way_out(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin.*save_pretrained"):
        Checkpoint.open(folder)


@pytest.mark.parametrize("keep", [0, 4, 100, 2000, -1])
def test_truncated_weights(folder: Path, keep: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="whole safetensors"):
        Checkpoint.open(folder)


@pytest.mark.parametrize(
    "index",
    ["{", "[]", '{"weight_map": 3}', '{"weight_map": {"a": 3}}', '{"weight_map": {"a": "../x"}}',
     '{"weight_map": {"a": "gone.safetensors"}}'],
)  # fmt: skip
def test_damaged_index(folder: Path, index: str) -> None:
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CheckpointError, match="index"):
        Checkpoint.open(folder)


def test_a_tensor_stored_twice(folder: Path) -> None:
    shard(folder)
    tensors = load_file(folder / "a.safetensors") | load_file(folder / "b.safetensors")
    save_file(tensors, folder / "a.safetensors")
    with pytest.raises(CheckpointError, match="both in"):
        Checkpoint.open(folder)


def test_unsupported_config_is_refused_before_weights_are_looked_for(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "config.json").write_text(json.dumps({**CONFIG, "num_experts": 8}))
    with pytest.raises(UnsupportedError):
        Checkpoint.open(folder)


def test_hub_id_is_downloaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr(
        "huggingface_hub.hf_hub_download",
        lambda *args: asked.append(args) or str(folder / "config.json"),
    )
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download",
        lambda name, allow_patterns: asked.append((name, *allow_patterns)) or str(folder),
    )
    assert Checkpoint.open("somebody/some-model").folder == folder
    assert asked[0] == ("somebody/some-model", "config.json")
    assert "*.safetensors" in asked[1]
    assert not any("bin" in pattern or "py" in pattern for pattern in asked[1][1:])


def test_hub_id_of_an_unsupported_model_downloads_no_weights(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "config.json").write_text(json.dumps({**CONFIG, "model_type": "mamba"}))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_: str(folder / "config.json"))
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("asked"))
    with pytest.raises(UnsupportedError, match="mamba"):
        Checkpoint.open("somebody/some-model")


def test_hub_id_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match="somebody/some-model is no folder here"):
        Checkpoint.open("somebody/some-model")
