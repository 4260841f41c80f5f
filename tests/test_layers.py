"""A package imports only lower layers, and torch stays where it belongs."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "pliant"

LAYERS = {
    "errors": 0,
    "measurement": 1,
    "spec": 1,
    "shape": 2,
    "bits": 2,
    "data": 2,
    "adapters": 3,
    "receipt": 3,
    "sensitivities": 3,
    "subnet": 3,
    "artifact": 4,
    "costs": 4,
    "load": 4,
    "search": 4,
    "models": 5,
    "runtime": 5,
    "calibrate": 6,
    "evaluate": 6,
    "export": 6,
    "serve": 6,
    "tune": 6,
    "hf": 7,
    "lm_eval": 7,
    "recipes": 7,
    "cli": 8,
    "__main__": 9,
    "__init__": 9,
}
#: `_native` is the engine: only the packages that wrap it may touch it.
NATIVE_USERS = {"runtime"}
TORCH_USERS = {"models", "calibrate", "tune", "recipes", "hf"}


def package_of(path: Path) -> str:
    """The layer name of a source file."""
    relative = path.relative_to(SOURCE)
    return relative.parts[0].removesuffix(".py")


def imported_modules(path: Path) -> list[str]:
    """Absolute names of everything a file imports, inside functions too."""
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import; write it absolutely"
            module = node.module or ""
            names += [f"{module}.{alias.name}" for alias in node.names]
    return names


def pliant_packages(path: Path) -> set[str]:
    """Packages of pliant that a file imports."""
    found = set()
    for name in imported_modules(path):
        parts = name.split(".")
        if parts[0] == "pliant" and len(parts) > 1 and parts[1] in LAYERS:
            found.add(parts[1])
    return found


FILES = sorted(SOURCE.rglob("*.py"))


def test_every_package_has_a_layer() -> None:
    assert {package_of(path) for path in FILES} <= set(LAYERS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_downwards(path: Path) -> None:
    package = package_of(path)
    for imported in pliant_packages(path) - {package}:
        assert LAYERS[imported] < LAYERS[package], (
            f"{package} (layer {LAYERS[package]}) imports {imported} (layer {LAYERS[imported]})"
        )


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_torch_and_the_engine_stay_where_they_belong(path: Path) -> None:
    package = package_of(path)
    roots = {name.split(".")[0] for name in imported_modules(path)}
    native = any(name.startswith("pliant._native") for name in imported_modules(path))
    assert "torch" not in roots or package in TORCH_USERS or "engines" in path.parts
    in_engine = "engines" in path.parts
    in_host = in_engine or package == "hf"
    assert "transformers" not in roots or in_host, "only engines of exports and pliant.hf need it"
    assert not native or package in NATIVE_USERS
