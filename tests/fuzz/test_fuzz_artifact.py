"""A few hundred damaged artifacts; `fuzz_artifact.py` runs as many as one likes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

FUZZER = Path(__file__).with_name("fuzz_artifact.py")


def test_damaged_artifacts_of_every_kind_are_refused_or_run():
    command = [sys.executable, FUZZER, "--mutations", "200", "--first", "1000000"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    print(result.stdout, result.stderr)
    assert result.returncode == 0, result.stderr
    assert "200 mutations" in result.stdout
