"""A few hundred damaged models of other projects; `fuzz_imports.py` runs as many as one likes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="checkpoints and adapters of PEFT need torch")
FUZZER = Path(__file__).with_name("fuzz_imports.py")


def test_damaged_models_are_refused_or_read():
    command = [sys.executable, FUZZER, "--mutations", "400", "--first", "1000000"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    print(result.stdout, result.stderr)
    assert result.returncode == 0, result.stderr
    assert "400 mutations" in result.stdout
