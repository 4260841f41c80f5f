"""The simulation that the tests of this folder share."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def simulation() -> ModuleType:
    """The module `simulation.py`; `simulation.Simulation(limits)` runs a scheduler."""
    spec = importlib.util.spec_from_file_location(
        "scheduling_simulation", Path(__file__).with_name("simulation.py")
    )
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
