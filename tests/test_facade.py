"""`import pliant` is light, needs no torch, and text is written without it."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import pliant

ROOT = Path(__file__).parents[1]

#: Makes torch and what builds on it impossible to import.
BLOCKED = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "accelerate"):
            raise ModuleNotFoundError(f"{name} must not be needed here", name=name)
sys.meta_path.insert(0, Blocked())
"""


def run(code: str, *arguments: object) -> str:
    """Standard output of a fresh interpreter in which torch cannot be imported."""
    command = [sys.executable, "-c", BLOCKED + code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_pliant_imports_next_to_nothing() -> None:
    code = """
before = set(sys.modules)
import pliant
heavy = {"numpy", "tokenizers", "jinja2", "safetensors", "typer", "rich", "pliant._native"}
print(sorted(heavy & set(sys.modules)), pliant.__version__)
"""
    assert run(code) == f"[] {pliant.__version__}\n"


def test_runtime_and_evaluation_need_no_torch() -> None:
    code = """
import pliant.runtime, pliant.evaluate, pliant.artifact, pliant.search, pliant.costs
from pliant.runtime import Engine, TextEngine, open_artifact
print("jinja2" in sys.modules, "torch" in sys.modules)
"""
    assert run(code) == "False False\n"


def test_text_is_written_and_measured_without_torch(random_artifact: Path) -> None:
    code = """
import pliant
from pliant.evaluate import evaluate_text, measure_speed
with pliant.open(sys.argv[1]) as model:
    engine = model.engine("d3-b4", threads=1)
    text = engine.generate("Once upon a time", max_tokens=8, temperature=1.0)
    loss = evaluate_text(engine.engine, engine.tokenizer, "A fox lives in the wood. " * 9)
    print(len(text.tokens) > 0, loss.bits_per_byte > 0)
"""
    assert run(code, random_artifact) == "True True\n"


def test_building_without_torch_says_what_is_missing(tmp_path: Path) -> None:
    code = """
import pliant
try:
    pliant.build(sys.argv[1], sys.argv[2])
except pliant.errors.UnsupportedError as error:
    print("pliant[torch]" in str(error))
"""
    assert run(code, tmp_path, tmp_path / "x.pliant") == "True\n"


def test_the_facade_offers_what_it_says() -> None:
    pytest.importorskip("torch", reason="pliant.build imports it")
    assert dir(pliant) == ["__version__", "build", "errors", "open"]
    assert callable(pliant.open)
    assert callable(pliant.build)
    with pytest.raises(AttributeError, match="it offers __version__, build, errors, open"):
        _ = pliant.nothing  # type: ignore[attr-defined]


def test_the_version_is_that_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert pliant.__version__ == project["version"]
