"""A tiny model, a text with something to learn, and a space of its shapes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pliant.data import Mixture, Source
from pliant.models import Supernet
from pliant.recipes.train_demo import DemoShape
from pliant.shape import ShapeSpace
from pliant.tune import TuneOptions

SHAPE = DemoShape(num_blocks=3, hidden_size=32, num_heads=4, num_groups=2, head_dim=8,
                  ffn_size=64, vocab_size=64, context=32)  # fmt: skip


def tiny_model(seed: int = 0) -> Supernet:
    """Fresh weights, large enough that every cut shows in the logits."""
    model = Supernet.initialized(SHAPE.spec(), seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight *= 5 if weight.ndim == 2 else 1
    return model


def tiny_mixture(seed: int = 0) -> Mixture:
    """Tokens that follow each other: the next is the last plus 1, 2 or 3."""
    steps = np.random.default_rng(seed).integers(1, 4, size=6000)
    return Mixture([Source("walk", (np.cumsum(steps) % 64).astype(np.uint16), 1.0)], seed)


def of_one_and_two_processes(worker: str, folder: Path) -> list[dict[str, torch.Tensor]]:
    """What a program wrote alone, and as the first and the second process of `torchrun`.

    It is given a folder for `of-COUNT-RANK.safetensors`, and the root of the project.
    """
    (folder / "worker.py").write_text(worker)
    arguments = [str(folder / "worker.py"), str(folder), str(Path(__file__).parents[2])]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for command in ([], torchrun):
        subprocess.run(
            [sys.executable, *command, *arguments], env=environment, check=True, timeout=300
        )
    return [load_file(folder / f"of-{name}.safetensors") for name in ("1-0", "2-0", "2-1")]


@pytest.fixture
def model() -> Supernet:
    return tiny_model()


@pytest.fixture
def mixture() -> Mixture:
    return tiny_mixture()


@pytest.fixture
def space(model: Supernet) -> ShapeSpace:
    """Three depths, two widths."""
    return ShapeSpace(model.spec, ((0, 1, 2), (0, 2), (2,)), (1.0, 0.5), alignment=32)


@pytest.fixture
def options() -> TuneOptions:
    return TuneOptions(
        steps=8, batch_tokens=128, micro_tokens=64, window_tokens=32, warmup_steps=2,
        teacher="tuned", teacher_tokens=16,
    )  # fmt: skip
