"""A few hundred damaged models of each kind; the scripts run as many as one likes."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None,
    reason="checkpoints and adapters of PEFT need torch",
)


@pytest.mark.parametrize(
    ("script", "mutations"),
    [
        pytest.param("fuzz_artifact.py", 200, id="artifacts"),
        pytest.param("fuzz_imports.py", 400, id="models of other projects", marks=needs_torch),
    ],
)
def test_damaged_files_are_refused_or_read(script: str, mutations: int) -> None:
    fuzzer = Path(__file__).with_name(script)
    command = [sys.executable, fuzzer, "--mutations", str(mutations), "--first", "1000000"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    print(result.stdout, result.stderr)
    assert result.returncode == 0, result.stderr
    assert f"{mutations} mutations" in result.stdout
