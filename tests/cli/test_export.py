"""`pliant export`: what it writes, says and refuses."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]


def test_a_folder_and_a_file_are_written(pliant: Run, pristine: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="the package gguf of the extra `export` is missing")
    ran = pliant("export", f"{pristine}@d2-b3", "-o", tmp_path / "out", "--json", "--no-verify")
    assert ran.code == 0 and ran.data["storage"] == "bfloat16"
    assert (tmp_path / "out" / "model.safetensors").stat().st_size > ran.data["weight_bytes"]
    ran = pliant(
        "export", f"{pristine}@d2-b3", "--to", "gguf", "-o", tmp_path / "out.gguf", "--no-verify"
    )
    assert ran.code == 0 and "14 Q4_0, 1 Q5_0" in ran.out
    assert (tmp_path / "out.gguf").read_bytes()[:4] == b"GGUF"


def test_a_dry_run_writes_nothing(pliant: Run, pristine: Path, tmp_path: Path) -> None:
    ran = pliant("export", pristine, "-o", tmp_path / "out", "--dry-run", "--json")
    assert ran.code == 0 and ran.data["num_bytes"] > 2 * 100_000
    assert not any(tmp_path.iterdir())


def test_refusals_have_their_exit_codes(pliant: Run, pristine: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    ran = pliant("export", pristine, "-o", tmp_path / "there")
    assert ran.code == 2 and "--force" in ran.err
    ran = pliant("export", pristine, "-o", tmp_path / "x", "--type", "int3")
    assert ran.code == 2 and "bf16, fp16 or fp32" in ran.err
    ran = pliant("export", f"{pristine}@d9", "-o", tmp_path / "x")
    assert ran.code == 2 and "cannot be cut to 9 blocks" in ran.err


def test_a_missing_package_is_named_with_its_command(
    pliant: Run, pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    ran = pliant("export", pristine, "--to", "gguf", "-o", tmp_path / "x.gguf")
    assert ran.code == 2 and "pip install 'pliant[export]'" in ran.err
    assert not any(tmp_path.iterdir())
