"""`export_hf`: a subnet as a Hugging Face folder that stock `transformers` classes load."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pliant.artifact import Artifact
from pliant.artifact.folder import json_object
from pliant.export.dense import DenseWeights
from pliant.export.hf_config import held_by_transformers, subnet_config
from pliant.export.model_card import model_card
from pliant.export.nearest import held_or_nearest
from pliant.export.number_types import NUMBER_BYTES, NumberType, stored_numbers
from pliant.export.record import ExportRecord, record_of
from pliant.export.shard_file import write_shard
from pliant.export.target import RECORD_FILE, new_target
from pliant.measurement import Progress, silent
from pliant.spec.checkpoint_names import checkpoint_names

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
#: What the hub and slow lines like; a tensor that is larger has a file of its own.
SHARD_BYTES = 4 * 10**9
#: Config, card and index are a few thousand bytes; the index has a line for each tensor.
_SMALL_BYTES = 64 * 1024
_INDEX_BYTES_PER_TENSOR = 128


@dataclass(frozen=True, kw_only=True)
class HfPlan:
    """What an export to a folder will write, known before it starts.

    `shards` are names of tensors of the artifact in stored order, file by file.
    """

    weights: DenseWeights
    config: dict[str, Any]
    dtype: NumberType
    shards: tuple[tuple[str, ...], ...]
    weight_bytes: int
    padding: int

    @property
    def num_bytes(self) -> int:
        """Bytes of all files, rounded up for the small ones."""
        artifact = self.weights.artifact
        files = artifact.manifest.files
        copied = sum(files[name].size for name in artifact.manifest.tokenizer_files)
        index = _INDEX_BYTES_PER_TENSOR * len(self.weights.shapes())
        return self.weight_bytes + copied + index + _SMALL_BYTES

    @property
    def storage(self) -> str:
        """How the weights are stored."""
        return self.dtype

    @property
    def notes(self) -> list[str]:
        """Sentences about what the target made necessary."""
        if not self.padding:
            return []
        held = self.weights.held
        return [
            f"filled up with {self.padding:,} weights of zero to {held.groups} groups and "
            f"{held.neurons} neurons in every block, because transformers cannot hold the widths "
            "as they are; the function is the same"
        ]


def plan_hf(
    artifact: Artifact,
    address: str,
    dtype: NumberType = "bfloat16",
    *,
    pad: bool = True,
    shard_bytes: int = SHARD_BYTES,
) -> HfPlan:
    """Check that `transformers` can hold the subnet at `address`; reads no weights.

    `UnsupportedError` where it cannot, with the reason and the nearest that it can.
    """
    subnet = artifact.subnet(address)
    weights = DenseWeights(artifact, subnet, held_by_transformers(subnet, pad))
    config = json_object(artifact.read_file("config.json"), artifact.path / "config.json")
    sizes = {name: NUMBER_BYTES[dtype] * int(np.prod(shape))
             for name, shape in weights.shapes().items()}  # fmt: skip
    return HfPlan(
        weights=weights,
        config=held_or_nearest(
            artifact,
            subnet,
            lambda one: subnet_config(config, one, held_by_transformers(one, True), dtype),
        ),
        dtype=dtype,
        shards=tuple(_shards(sizes, shard_bytes)),
        weight_bytes=sum(sizes.values()),
        padding=weights.held.padding(subnet),
    )


def export_hf(
    plan: HfPlan, address: str, path: Path, *, force: bool = False, progress: Progress = silent
) -> ExportRecord:
    """Write the folder `path`: weights, config, tokenizer, generation config and model card.

    It appears when it is whole. Raises `UsageError` for a place that may not be written,
    `OutOfSpaceError` for a disk without room, `UnsupportedError` for weights beyond float16.
    """
    artifact = plan.weights.artifact
    record = record_of(artifact, plan.weights.subnet, address, "hf", plan.dtype, plan.weight_bytes)
    with new_target(path, plan.num_bytes, is_folder=True, force=force) as folder:
        _write_weights(plan, folder, progress)
        _write_json(folder / "config.json", plan.config)
        for name in artifact.manifest.tokenizer_files:
            (folder / name).write_bytes(artifact.read_file(name))
        _name_tokenizer_class(folder)
        card = model_card(artifact, plan.weights.subnet, record, plan.notes)
        (folder / "README.md").write_text(card, encoding="utf-8")
        (folder / RECORD_FILE).write_bytes(record.to_json())
    return record


def _shards(sizes: dict[str, int], most_bytes: int) -> Iterator[tuple[str, ...]]:
    """Names in order, as many to a file as fit; one that does not fit has a file of its own."""
    names: list[str] = []
    held = 0
    for name, size in sizes.items():
        if names and held + size > most_bytes:
            yield tuple(names)
            names, held = [], 0
        names.append(name)
        held += size
    yield tuple(names)


def _write_weights(plan: HfPlan, folder: Path, progress: Progress) -> None:
    """All shards, and the index where there are several."""
    theirs = checkpoint_names(plan.weights.spec)
    count, done = len(plan.shards), 0
    weight_map: dict[str, str] = {}
    shapes = plan.weights.shapes()
    ours = {theirs[name]: name for name in shapes}

    def make(name: str) -> NDArray[np.generic]:
        nonlocal done
        done += 1
        progress("writing weights", done, len(theirs))
        return stored_numbers(plan.weights.tensor(ours[name]), plan.dtype, ours[name])

    for number, names in enumerate(plan.shards, start=1):
        file = WEIGHTS_FILE if count == 1 else f"model-{number:05}-of-{count:05}.safetensors"
        write_shard(folder / file, {theirs[name]: shapes[name] for name in names}, plan.dtype, make)
        weight_map |= {theirs[name]: file for name in names}
    if count > 1:
        index = {"metadata": {"total_size": plan.weight_bytes}, "weight_map": weight_map}
        _write_json(folder / INDEX_FILE, index)


def _name_tokenizer_class(folder: Path) -> None:
    """Have `transformers` run tokenizer.json as it is where the model names no class of its own.

    The class it would choose for the architecture may rebuild parts of the tokenizer.
    """
    path = folder / "tokenizer_config.json"
    config = json_object(path.read_bytes(), path) if path.is_file() else {}
    if "tokenizer_class" not in config:
        _write_json(path, {"tokenizer_class": "PreTrainedTokenizerFast", **config})


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
