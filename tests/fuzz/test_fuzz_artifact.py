"""A few hundred damaged artifacts; `fuzz_artifact.py` runs as many as one likes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FUZZER = Path(__file__).with_name("fuzz_artifact.py")


@pytest.mark.parametrize(("codec", "count"), [("uniform", 300), ("shift-add", 100)])
def test_damaged_artifacts_are_refused_or_run(codec, count):
    command = [sys.executable, FUZZER, "--mutations", str(count), "--first", "1000000"]
    result = subprocess.run(
        [*command, "--codec", codec], capture_output=True, text=True, check=False
    )
    print(result.stdout, result.stderr)
    assert result.returncode == 0, result.stderr
    assert f"{count} mutations" in result.stdout
