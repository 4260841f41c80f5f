"""The resumable state of a training run: one safetensors file, replaced as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from pliant.errors import CheckpointError, UsageError

_FILE = "training.safetensors"


@dataclass(frozen=True)
class TrainingProgress:
    """How far a run is: optimizer steps, tokens seen, seconds of training, its settings' hash."""

    step: int
    tokens: int
    seconds: float
    fingerprint: str


def save_state(
    folder: Path, progress: TrainingProgress, tensors: Mapping[str, torch.Tensor]
) -> None:
    """Write the state under a temporary name, then rename it over the last one."""
    metadata = {name: str(value) for name, value in vars(progress).items()}
    partial = folder / f"{_FILE}.partial"
    contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, partial, metadata=metadata)
    partial.replace(folder / _FILE)


def load_state(
    folder: Path, fingerprint: str, tensors: Mapping[str, torch.Tensor]
) -> TrainingProgress:
    """Copy the saved state into `tensors` and return how far it is; step 0 where none was saved.

    Raises `UsageError` when the state belongs to other settings and `CheckpointError` when it is
    damaged.
    """
    path = folder / _FILE
    if not path.exists():
        return TrainingProgress(0, 0, 0.0, fingerprint)
    try:
        with safe_open(path, framework="pt") as file:
            saved = file.metadata() or {}
            if saved.get("fingerprint") != fingerprint:
                raise UsageError(
                    f"{path} was trained with other settings; "
                    "give another state folder or delete it to start again"
                )
            with torch.no_grad():
                for name, tensor in tensors.items():
                    tensor.copy_(file.get_tensor(name))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); delete it to start again") from error
    return TrainingProgress(
        int(saved["step"]), int(saved["tokens"]), float(saved["seconds"]), fingerprint
    )
