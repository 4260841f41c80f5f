"""Artifacts, and the model class under the real lm-eval or under a stub of it."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
HAS_LM_EVAL = importlib.util.find_spec("lm_eval") is not None


def _stub() -> Any:
    spec = importlib.util.spec_from_file_location(
        "harness_stub", Path(__file__).with_name("harness_stub.py")
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", params=["lm-eval", "stub"])
def harness(request: pytest.FixtureRequest) -> Iterator[Any]:
    """`harness.PliantLM` and `harness.Instance(*args)`."""

    class Harness:
        def __init__(self, model: Any, instance: Any) -> None:
            self.PliantLM, self.Instance = model, instance

    stub = _stub()
    if request.param == "lm-eval":
        if not HAS_LM_EVAL:
            pytest.skip("lm-eval is not installed: pip install 'pliant[lm-eval]'")
        from pliant.lm_eval import PliantLM

        yield Harness(PliantLM, stub.Instance)
        return
    mine = {name: module for name, module in sys.modules.items() if _belongs(name)}
    for name in mine:
        del sys.modules[name]
    registry: dict[str, Any] = {}
    sys.modules.update(stub.modules(registry))
    importlib.import_module("pliant.lm_eval")
    yield Harness(registry["pliant"], stub.Instance)
    for name in [name for name in sys.modules if _belongs(name)]:
        del sys.modules[name]
    sys.modules.update(mine)


def _belongs(name: str) -> bool:
    return name.split(".")[0] == "lm_eval" or name.startswith("pliant.lm_eval")


@pytest.fixture(scope="session")
def quick_tale(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model rounded to nearest; do not change its files."""
    from interop_models import quick_artifact

    tale = sorted((ROOT / "models").glob("tale-*"))[0]
    return quick_artifact(tale, tmp_path_factory.mktemp("quick") / "tale.pliant").path


@pytest.fixture(scope="session")
def chat_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model with a chat template; do not change its files."""
    from interop_models import quick_artifact, tiny_checkpoint

    folder = tmp_path_factory.mktemp("chat")
    return quick_artifact(tiny_checkpoint("llama", folder / "a"), folder / "a.pliant").path
