"""A tuned checkpoint: a Hugging Face folder whose weights lie in order and are tuned for shapes.

Beside the usual files lies `pliant_tuning.json`: which blocks each depth keeps, under what settings
the weights were tuned, and what that gave. `build` takes the choices from there. Where adapters
were tuned, the weights are as they were, in order, beside them `pliant_adapters.safetensors`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from pliant.adapters import AdapterSpec
from pliant.errors import CheckpointError, PliantError
from pliant.models import ShapeAdapters, Supernet
from pliant.recipes.finer import Finer
from pliant.shape import DepthPath, SubnetShape, shape_of_halves
from pliant.spec import ModelSpec

RECORD_FILE = "pliant_tuning.json"
ADAPTERS_FILE = "pliant_adapters.safetensors"
_SHARD_BYTES = 4 * 10**9


class TuneReceipt(msgspec.Struct, frozen=True, kw_only=True):
    """What a tuning did, and what it took.

    Losses are nats per token on the part of the calibration text that chooses, by shape: every
    depth at full width, every width at full depth, and the smallest shape. `predicted_bytes` was
    announced before the first step; `warnings` are sentences about the text.
    """

    checkpoint: str
    steps: int
    tokens: int
    num_shapes: int
    losses_before: dict[str, float]
    losses_after: dict[str, float]
    seconds: float
    peak_bytes: int
    predicted_bytes: int
    warnings: tuple[str, ...] = ()


class TuningRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What `pliant_tuning.json` holds. `settings` are all inputs, text and checkpoint by hash.

    `finer` are the halves of blocks and the ranking of widths that were tuned too, if any were.
    """

    version: int
    settings: dict[str, Any]
    depth_paths: dict[str, DepthPath]
    receipt: TuneReceipt
    adapters: AdapterSpec | None = None
    finer: Finer = Finer()


def read_adapters(folder: Path, spec: ModelSpec, adapters: AdapterSpec) -> ShapeAdapters:
    """The adapters of a tuned checkpoint whose record names them; `CheckpointError` if damaged."""
    path = folder / ADAPTERS_FILE
    try:
        return ShapeAdapters(spec, adapters, load_file(path))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); tune again.") from error


def read_record(folder: Path, spec: ModelSpec) -> TuningRecord | None:
    """The record of a checkpoint folder; None where its weights were not tuned for shapes.

    `CheckpointError` where the record is damaged or speaks of blocks that do not exist.
    """
    path = folder / RECORD_FILE
    if not path.is_file():
        return None
    try:
        record = msgspec.json.decode(path.read_bytes(), type=TuningRecord)
        for method, depth_path in record.depth_paths.items():
            for choice in depth_path.choices:
                SubnetShape.uniform(spec, choice.blocks, 1.0).check_against(spec)
            if method != depth_path.method or spec.num_blocks not in depth_path.blocks:
                raise CheckpointError(f"its path {method!r} does not begin with all blocks")
        _check_finer(record.finer, spec)
        if record.version != 1 or not record.depth_paths:
            raise CheckpointError(f"it has version {record.version} and paths of no or some method")
    except (ValueError, RecursionError, PliantError) as error:
        raise CheckpointError(
            f"{path} is damaged ({error}); remove it to have the model's shapes chosen anew, or "
            "tune again."
        ) from error
    return record


def _check_finer(finer: Finer, spec: ModelSpec) -> None:
    if finer.half_path is not None:
        for choice in finer.half_path.choices:
            shape_of_halves(spec, choice.blocks).check_against(spec)
    if finer.width_ranking is not None:
        finer.width_ranking.check(spec)


def differences(asked: dict[str, Any], found: dict[str, Any]) -> str:
    """Settings that differ, as `steps was 100 and is 200 now`; empty where none does."""
    return ", ".join(
        f"{name} was {found.get(name)} and is {asked.get(name)} now"
        for name in sorted({*asked, *found})
        if asked.get(name) != found.get(name)
    )


def write_tuned(
    model: Supernet, source: Path, companions: Sequence[str], record: TuningRecord, folder: Path
) -> None:
    """Write float32 weights and adapters, the source's config and companions, and the record.

    The folder appears under its name when it is whole; what was there is replaced.
    """
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    config = json.loads((source / "config.json").read_bytes())
    config.update({name: "float32" for name in ("torch_dtype", "dtype") if name in config})
    (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for name in companions:
        if (source / name).is_file():
            shutil.copyfile(source / name, partial / name)
    _write_weights(model, partial)
    if model.adapters is not None:
        stored = {name: tensor.cpu() for name, tensor in model.adapters.stored_tensors().items()}
        save_file(stored, partial / ADAPTERS_FILE)
        (partial / ADAPTERS_FILE).chmod(0o644)
    (partial / RECORD_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(record)) + b"\n")
    if folder.exists():
        shutil.rmtree(folder)
    partial.replace(folder)


def _write_weights(model: Supernet, folder: Path) -> None:
    tensors = {name: tensor.cpu() for name, tensor in model.to_checkpoint_tensors().items()}
    split = split_torch_state_dict_into_shards(tensors, max_shard_size=_SHARD_BYTES)
    for file, names in split.filename_to_tensors.items():
        save_file({name: tensors[name] for name in names}, folder / file, {"format": "pt"})
        # safetensors writes files that only their owner can read.
        (folder / file).chmod(0o644)
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        path = folder / "model.safetensors.index.json"
        path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
