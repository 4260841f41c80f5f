"""`merged_folder`: a checkpoint with a LoRA of the PEFT library merged into its weights.

A low-rank adapter (LoRA, arXiv 2106.09685) adds `scale * B A` to a matrix, with B `[rows, r]`,
A `[r, columns]` and scale `alpha / r`, or `alpha / sqrt(r)` for rsLoRA (arXiv 2312.03732). Merged
it costs nothing, and orders, planes and depth paths are found for the adapted model.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from pliant.errors import CheckpointError, UnsupportedError
from pliant.export.shard_file import write_shard
from pliant.measurement import Progress, silent
from pliant.models import Checkpoint, checkpoint_names
from pliant.recipes.build import COMPANIONS
from pliant.runtime.side_file import is_there

_CONFIG_FILE, _WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
_PART = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<half>[AB])\.weight")
#: Settings of PEFT that change what is computed, and the values that do not.
_REFUSED = {
    "use_dora": (None, False), "fan_in_fan_out": (None, False), "bias": (None, "none"),
    "modules_to_save": (None, []), "rank_pattern": (None, {}), "alpha_pattern": (None, {}),
    "lora_bias": (None, False), "layer_replication": (None, []),
    "trainable_token_indices": (None, []),
}  # fmt: skip


def merged_folder(source: str, adapter: Path, folder: Path, progress: Progress = silent) -> Path:
    """Write the checkpoint `source` with the adapter merged into `folder`, float32.

    The same inputs give the same bytes. `CheckpointError` for files that are missing, damaged or do
    not fit the checkpoint, `UnsupportedError` for an adapter that is more than low-rank products;
    both before anything is written.
    """
    checkpoint = Checkpoint.open(source)
    scale = _scale(adapter)
    theirs = checkpoint_names(checkpoint.spec)
    shapes = checkpoint.spec.tensors()
    parts = _parts(adapter, {theirs[name].removesuffix(".weight"): name for name in theirs}, shapes)
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", *COMPANIONS):
        if (checkpoint.folder / name).is_file():
            shutil.copyfile(checkpoint.folder / name, folder / name)
    ours = {theirs[name]: name for name in shapes}
    done = 0

    def make(name: str) -> NDArray[np.float32]:
        nonlocal done
        done += 1
        progress("merging", done, len(shapes))
        weight = checkpoint.tensor(ours[name])
        if ours[name] in parts:
            low_AB = parts[ours[name]]
            # In fp64, so that the order of the sum over the rank does not show.
            weight += (scale * low_AB["B"].double() @ low_AB["A"].double()).float()
        return np.ascontiguousarray(weight.numpy())

    sizes = {theirs[name]: shape for name, shape in shapes.items()}
    write_shard(folder / "model.safetensors", sizes, "float32", make)
    return folder


def _scale(adapter: Path) -> float:
    """The factor on all products, from a config that is nothing but a LoRA."""
    path = adapter / _CONFIG_FILE
    try:
        config: Any = json.loads(path.read_bytes() if is_there(path) else b"")
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}. Give a folder of PEFT.") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise UnsupportedError(f"{path} is not of a LoRA; only those can be merged.")
    for field, harmless in _REFUSED.items():
        if config.get(field) not in harmless:
            raise UnsupportedError(
                f"{path} sets {field}, which is more than low-rank products; merge it with PEFT's "
                "merge_and_unload and build from the result."
            )
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if type(rank) is not int or rank < 1 or not isinstance(alpha, (int, float)):
        raise CheckpointError(f"{path} has the rank {rank!r} and lora_alpha {alpha!r}.")
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    if not math.isfinite(scale):
        raise CheckpointError(f"{path} scales by {scale}; it is damaged.")
    return scale


def _parts(
    adapter: Path, modules: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, dict[str, torch.Tensor]]:
    """Both halves of every product by the name of its matrix, checked to fit it."""
    path = adapter / _WEIGHTS_FILE
    parts: dict[str, dict[str, torch.Tensor]] = {}
    if not is_there(path):
        raise CheckpointError(f"There is no {path}; give a folder that PEFT saved.")
    try:
        with safe_open(path, framework="pt") as file:
            for stored in sorted(file.keys()):
                match = _PART.fullmatch(stored)
                name = modules.get(match["module"]) if match else None
                if match is None or name is None or len(shapes[name]) != 2:
                    raise UnsupportedError(
                        f"{path} holds {stored[:120]}, which is no low-rank product of a matrix of "
                        "this checkpoint; merge it with PEFT's merge_and_unload."
                    )
                parts.setdefault(name, {})[match["half"]] = file.get_tensor(stored).float()
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}.") from error
    for name, halves in parts.items():
        rows, columns = shapes[name]
        fits = set(halves) == {"A", "B"} and halves["A"].ndim == halves["B"].ndim == 2
        if not fits or (*halves["B"].shape[:1], *halves["A"].shape[1:]) != (rows, columns) or (
            halves["B"].shape[1] != halves["A"].shape[0]
        ):  # fmt: skip
            found = {half: list(tensor.shape) for half, tensor in sorted(halves.items())}
            raise CheckpointError(
                f"The adapter's product for {name} has halves {found}; the matrix is {rows} x "
                f"{columns}. The adapter is of another checkpoint."
            )
        if not all(bool(torch.isfinite(tensor).all()) for tensor in halves.values()):
            raise CheckpointError(f"The adapter's product for {name} holds NaN or infinity.")
    if not parts:
        raise CheckpointError(f"{path} holds nothing to merge.")
    return parts
