"""The soak test for seconds: in this process, where one can look into it, and as it is."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("starlette")

from pliant.serve.safety import Keys

#: Bytes of an entry of the random artifact; one whole context has 128.
ENTRY = 4 * 2 * 2 * 12 * 2 + 12


def test_everybody_at_once(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module = load_soak(monkeypatch)
    # Room for two whole texts of the eight that run, so that some must give way.
    keys = ["first-key", "second-key"]
    own = serve(Keys(keys), cache_bytes=300 * ENTRY, max_sequences=8, max_waiting=6)
    soak = module.Soak(own.url, "tiny", keys=keys)
    assert soak.saturate(2.0, clients=16) > 0
    own.wait_idle()
    assert not soak.wrong, soak.wrong[:3]
    assert soak.outcomes["answered"] > 0
    scheduler = own.service.room.scheduler
    pool = scheduler.pool
    assert pool.used_bytes == pool.stored_bytes <= 300 * ENTRY
    engines = own.service.subnets._open
    assert sum(one.engine.memory()["cache"] for one in engines.values()) == pool.used_bytes
    assert len(engines) == 3
    assert scheduler.counts.preemptions > 0 and scheduler.counts.recomputed_tokens > 0
    assert scheduler.counts.evictions > 0


def test_a_server_that_is_killed_and_comes_back(random_artifact: Path) -> None:
    command = [sys.executable, str(Path(__file__).with_name("soak.py")), str(random_artifact),
               "--seconds", "4", "--capacity-seconds", "0.5",
               "--cache-memory", str(300 * ENTRY)]  # fmt: skip
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    found = json.loads(ran.stdout.splitlines()[-1])
    assert found["faults"] == [] and found["passed"]
    assert found["wrong"] == found["lost"] == found["exit_code"] == 0
    assert found["answered_after_restart"] > 0 and found["preemptions"] > 0
    assert found["load_per_second"] == pytest.approx(1.5 * found["capacity_per_second"], rel=0.05)
    ends = ("answered", "refused", "malformed", "left", "hung_up", "cut_off", "expired",
            "too_late", "too_much", "unknown")  # fmt: skip
    assert sum(found.get(end, 0) for end in ends) == found["requests"] > 0


WELL = {
    "wrong": 0, "lost": 0, "texts_left": 0, "cache_bytes_left": 0, "exit_code": 0,
    "answered_after_restart": 9, "preemptions": 9, "recomputed_tokens": 9, "evictions": 9,
    "memory_judged": True, "memory_growth": 0.01, "open_files_before": 17, "open_files": 20,
    "idle_answers_after": "the same",
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("wrong", 1, "wrong is 1"),
        ("lost", 2, "lost is 2"),
        ("texts_left", 1, "texts_left is 1"),
        ("cache_bytes_left", 640, "cache_bytes_left is 640"),
        ("exit_code", -9, "exit_code is -9"),
        ("preemptions", 0, "preemptions is 0"),
        ("memory_growth", 0.03, "memory grows"),
        ("open_files", 60, "files stay open"),
        ("idle_answers_after", "others", "idle answers differ afterwards"),
    ],
)
def test_a_soak_fails_by_each_of_its_numbers(
    monkeypatch: pytest.MonkeyPatch, name: str, value: Any, said: str
) -> None:
    faults = load_soak(monkeypatch).faults
    assert faults(WELL) == []
    assert faults({**WELL, name: value}) == [said]
    assert faults({**WELL, "memory_judged": False, "memory_growth": 1}) == []


@pytest.mark.parametrize(("seconds", "judged", "first"), [(1800, True, 540), (200, True, 110),
                                                         (150, False, 45)])  # fmt: skip
def test_memory_is_looked_at_when_it_is_warm(
    monkeypatch: pytest.MonkeyPatch, seconds: int, judged: bool, first: int
) -> None:
    load_soak(monkeypatch)
    from soak_server import Watch

    watch: Any = Watch(None, None, seconds)  # type: ignore[arg-type]
    watch._readings = [(now, 100 + now) for now in range(seconds)]
    assert watch.is_judged is judged and watch.warm[0] == 100 + first
    assert watch.growth() == pytest.approx(0.9 * (seconds - first) / watch.warm[0], rel=0.1)


def test_an_answer_that_differs_anywhere_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    load_soak(monkeypatch)
    from soak_cases import Answer

    def choice(text: str, reason: str | None, score: float) -> dict[str, Any]:
        scores = {"tokens": [text], "token_logprobs": [score], "top_logprobs": [None]}
        return {"index": 0, "text": text, "logprobs": scores, "finish_reason": reason}

    usage = {"prompt_tokens": 3, "completion_tokens": 2}
    streamed = Answer()
    for part in (choice("a", None, -1.0), choice("b", "stop", -2.0)):
        streamed.add({"choices": [part], "usage": None})
    whole = Answer({0: "ab"}, {0: "stop"}, {0: [["a", -1.0, None], ["b", -2.0, None]]}, (3, 2))
    assert streamed != whole and streamed.begins(whole)
    streamed.add({"choices": [], "usage": usage})
    assert streamed == whole
    assert not Answer({0: "b"}).begins(whole)
    called = {"function": {"name": "find", "arguments": "{}"}}
    message = {"content": None, "tool_calls": [called]}
    found = {"choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}]}
    assert Answer.of(found).texts == {0: "find{}"}


def load_soak(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """`soak.py` with those beside it, which is a program and no package."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    return importlib.import_module("soak")
