"""The commands of the pages on exports run as they are written."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PAGES = Path(__file__).parents[2] / "docs" / "how_to"
COMMANDS = [
    (page, line.strip())
    for page in ("export_to_transformers.md", "export_to_llama_cpp.md")
    for line in (PAGES / page).read_text(encoding="utf-8").splitlines()
    if line.startswith("    pliant export ")
]


@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=[line for _, line in COMMANDS])
def test_command(page: str, line: str, pliant: Callable[..., Any], pristine: Path, tmp_path: Path,
                 monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    if page.endswith("llama_cpp.md"):
        pytest.importorskip("gguf", reason="the package gguf of the extra `export` is missing")
    monkeypatch.chdir(tmp_path)
    words = shlex.split(line, comments=True)[1:]
    # The tiny model has three blocks; the page speaks of a larger one.
    words = [word.replace("X.pliant", str(pristine)).replace("@d8-", "@d2-") for word in words]
    ran = pliant(*words, "--no-verify")
    assert ran.code == 0, ran.err
    assert any(tmp_path.iterdir()) != ("--dry-run" in words)
