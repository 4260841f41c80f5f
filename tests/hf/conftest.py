"""Artifacts of tiny random models of every architecture."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`tiny(name, **changes of its config)`: the folder, made once; do not change its files."""
    from interop_models import quick_artifact, tiny_checkpoint

    @lru_cache
    def make(name: str, **changes: Any) -> Path:
        folder = tmp_path_factory.mktemp(name)
        checkpoint = tiny_checkpoint(name, folder / name, **changes)
        return quick_artifact(checkpoint, folder / f"{name}.pliant").path

    return make
