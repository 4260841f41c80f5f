"""The soak test for seconds: in this process, where one can look into it, and as it is."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def test_everybody_at_once(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    spec = importlib.util.spec_from_file_location("soak", Path(__file__).with_name("soak.py"))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    # Room for three or four texts of the eight that run, so that some must give way.
    entry = 4 * 2 * 2 * 12 * 2 + 8
    own = serve(cache_bytes=400 * entry, max_sequences=8, max_waiting=6)
    soak = module.Soak(own.url, "tiny", 24)
    assert soak.saturate(2.0, clients=16) > 0
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
               "--seconds", "3", "--capacity-seconds", "0.5",
               "--cache-memory", str(400 * entry)]  # fmt: skip
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    found = json.loads(ran.stdout.splitlines()[-1])
    assert found["wrong"] == found["lost"] == found["exit_code"] == 0
    assert found["answered_after_restart"] > 0 and found["evictions"] > 0
    assert found["load_per_second"] == pytest.approx(1.5 * found["capacity_per_second"], rel=0.05)
    ends = ("answered", "refused", "malformed", "left", "hung_up", "cut_off")
    assert sum(found.get(end, 0) for end in ends) == found["requests"] > 0
