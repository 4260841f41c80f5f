"""The soak test for seconds: in this process, where one can look into it, and as it is."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any


def test_everybody_at_once(serve: Any) -> None:
    spec = importlib.util.spec_from_file_location("soak", Path(__file__).with_name("soak.py"))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    # Room for three or four texts of the eight that run, so that some must give way.
    entry = 4 * 2 * 2 * 12 * 2 + 8
    own = serve(cache_bytes=400 * entry, max_sequences=8, max_waiting=6)
    soak = module.Soak(own.url, "tiny", 24)
    soak.run(2.0, clients=16)
    own.wait_idle()
    assert not soak.wrong, soak.wrong[:3]
    assert soak.outcomes["answered"] > 0
    pool = own.service.room.scheduler.pool
    assert pool.used_bytes == pool.stored_bytes <= 400 * entry
    engine = own.service.subnets._open[""].engine
    assert engine.memory()["cache"] == pool.used_bytes
    assert own.service.room.scheduler.counts.evictions > 0


def test_a_server_that_is_killed_and_comes_back(random_artifact: Path) -> None:
    entry = 4 * 2 * 2 * 12 * 2 + 8
    command = [sys.executable, str(Path(__file__).with_name("soak.py")), str(random_artifact),
               "--seconds", "3", "--parts", "2", "--clients", "6",
               "--cache-memory", str(400 * entry)]  # fmt: skip
    found = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "0 wrong" in found.stdout and "exit code 0" in found.stdout
