"""Fixtures of this folder; `small_artifact` is importable from its tests."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def pristine(tmp_path_factory):
    """An artifact that no test may change."""
    from small_artifact import build

    return build(tmp_path_factory.mktemp("artifact") / "small.pliant").path


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    """`fsync` guards against loss of power, which no test causes; a kill does not lose pages."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def damaged(pristine, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(pristine, tmp_path / "damaged.pliant")
