"""`pliant serve` as a process: what it says, how it stops, what it refuses."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

PATIENCE = 60


def test_it_lets_a_running_text_end_and_stops(pristine: Path) -> None:
    """SIGTERM in the middle of a stream: the stream is whole, the exit orderly."""
    command = [sys.executable, "-m", "pliant.cli", "serve", f"{pristine}@b4", "--port", "0",
               "--json", "--threads", "1"]  # fmt: skip
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            said = json.loads(process.stdout.readline())
            assert said["model"] == "tiny"
            body = {"prompt": "ab", "max_tokens": 250, "stream": True, "ignore_eos": True,
                    "stream_options": {"include_usage": True}}  # fmt: skip
            with httpx.stream(
                "POST", f"{said['url']}/v1/completions", json=body, timeout=PATIENCE
            ) as response:
                lines = response.iter_lines()
                first = next(lines)
                process.send_signal(signal.SIGTERM)
                rest = [line for line in lines if line]
            assert json.loads(first.removeprefix("data: "))["model"] == "tiny@b4"
            assert rest[-1] == "data: [DONE]"
            assert json.loads(rest[-2].removeprefix("data: "))["usage"]["completion_tokens"] == 250
            _, notes = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
    assert process.returncode == 0
    assert "stopped" in notes and "tiny@auto" in notes
    assert '"event":"answered"' in notes


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--host", "0.0.0.0"], "has no keys"),
        (["--keys", "/nowhere/keys"], "cannot be read"),
        (["--model-name", "a@b"], "cannot name a model"),
        (["--step-time", "2h"], "makes no sense"),
        (["--cache-type", "int5"], "int8"),
        (["--kv-bits", "5"], "asked for; use"),
        (["--cache-type", "int3", "--kv-window", "5"], "multiple of 64"),
        (["--auto", "d99"], "99"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_cannot_be_served(
    pliant: Callable[..., Any], pristine: Path, flags: list[str], reason: str
) -> None:
    ran = pliant("serve", pristine, "--port", "0", *flags)
    assert ran.code in (1, 2) and reason in ran.err, ran.err


def test_a_cut_or_library_that_is_not_there(
    pliant: Callable[..., Any], pristine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = pliant("serve", f"{pristine}@d99", "--port", "0")
    assert ran.code == 2 and "99 blocks" in ran.err
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    ran = pliant("serve", pristine)
    assert ran.code == 5 and "pip install 'pliant[serve]'" in ran.err
