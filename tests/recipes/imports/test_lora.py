"""A LoRA merged on the way in: the weights it stands for, and adapters that are refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from pliant.errors import CheckpointError, UnsupportedError
from pliant.models import Checkpoint
from pliant.recipes.imports import as_checkpoint
from pliant.recipes.imports.lora import merged_folder

RANK, ALPHA = 3, 12
PREFIX = "base_model.model.model.layers.1."


def write_adapter(folder: Path, tensors: dict[str, torch.Tensor], **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "bias": "none", **changes}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def halves(rows: int = 48, columns: int = 160, module: str = "mlp.down_proj") -> Any:
    draw = torch.Generator().manual_seed(0)
    return {
        f"{PREFIX}{module}.lora_A.weight": torch.randn(RANK, columns, generator=draw),
        f"{PREFIX}{module}.lora_B.weight": torch.randn(rows, RANK, generator=draw),
    }


@pytest.mark.parametrize(("rslora", "scale"), [(False, ALPHA / RANK), (True, ALPHA / RANK**0.5)])
def test_the_product_is_added(
    rslora: bool, scale: float, random_checkpoint: Path, tmp_path: Path
) -> None:
    tensors = halves()
    adapter = write_adapter(tmp_path / "adapter", tensors, use_rslora=rslora)
    before = Checkpoint.open(random_checkpoint)
    after = Checkpoint.open(merged_folder(str(random_checkpoint), adapter, tmp_path / "merged"))
    low = {name.split(".")[-2]: tensor for name, tensor in tensors.items()}
    product = scale * low["lora_B"] @ low["lora_A"]
    for name in before.spec.tensors():
        expected = before.tensor(name) + (product if name == "blocks.1.down" else 0)
        # One fp32 rounding of the sum, and that of a product of three terms here.
        torch.testing.assert_close(after.tensor(name), expected, rtol=1e-6, atol=1e-5)
    assert product.abs().max() > 1
    assert (tmp_path / "merged" / "tokenizer.json").is_file()


def test_it_lasts_as_long_as_the_build(random_checkpoint: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", halves())
    output = tmp_path / "x.pliant"
    with as_checkpoint(str(random_checkpoint), output, adapter) as source:
        merged = Checkpoint.open(source).fingerprint
    with as_checkpoint(str(random_checkpoint), output, adapter) as source:
        assert Checkpoint.open(source).fingerprint == merged
    assert merged != Checkpoint.open(random_checkpoint).fingerprint
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


@pytest.mark.parametrize(
    ("tensors", "changes", "error", "words"),
    [
        (halves(), {"use_dora": True}, UnsupportedError, "sets use_dora.*merge_and_unload"),
        (halves(), {"bias": "all"}, UnsupportedError, "sets bias"),
        (halves(), {"peft_type": "IA3"}, UnsupportedError, "not of a LoRA"),
        (halves(), {"r": 0}, CheckpointError, "rank 0"),
        (halves(), {"lora_alpha": float("inf")}, CheckpointError, "scales by inf"),
        (halves(rows=47), {}, CheckpointError, "of another checkpoint"),
        (halves(module="mlp.router"), {}, UnsupportedError, "no low-rank product"),
        (halves(module="input_layernorm"), {}, UnsupportedError, "no low-rank product"),
        (dict(list(halves().items())[:1]), {}, CheckpointError, "of another checkpoint"),
        ({}, {}, CheckpointError, "nothing to merge"),
        ({name: part * torch.inf for name, part in halves().items()}, {}, CheckpointError, "NaN"),
    ],
)  # fmt: skip
def test_adapters_that_are_refused(
    tensors: Any, changes: Any, error: Any, words: str, random_checkpoint: Path, tmp_path: Path
) -> None:
    adapter = write_adapter(tmp_path / "adapter", tensors, **changes)
    with pytest.raises(error, match=words):
        merged_folder(str(random_checkpoint), adapter, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_folder_that_is_none(random_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"adapter_config\.json cannot be read"):
        merged_folder(str(random_checkpoint), tmp_path, tmp_path / "merged")
    adapter = write_adapter(tmp_path / "adapter", halves())
    (adapter / "adapter_model.safetensors").write_bytes(b"junk")
    with pytest.raises(CheckpointError, match="not a whole safetensors"):
        merged_folder(str(random_checkpoint), adapter, tmp_path / "merged")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        (adapter / name).unlink()
        os.mkfifo(adapter / name)
        with pytest.raises(CheckpointError, match="not a regular file"):
            merged_folder(str(random_checkpoint), adapter, tmp_path / "merged")
