"""`pliant serve` as a process: what it says, how it stops, what it refuses."""

from __future__ import annotations

import json
import signal
import socket
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


def test_a_signal_that_comes_with_the_first_request(pristine: Path) -> None:
    """Both are sent as soon as the server has said where it listens: the answer is whole."""
    command = [sys.executable, "-m", "pliant.cli", "serve", str(pristine), "--port", "0", "--json",
               "--quiet", "--threads", "1"]  # fmt: skip
    body = json.dumps({"prompt": "ab", "max_tokens": 200, "ignore_eos": True})
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = json.loads(process.stdout.readline())["url"]
            host, port = url.removeprefix("http://").split(":")
            with socket.create_connection((host, int(port)), timeout=PATIENCE) as raw:
                head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n"
                raw.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
                process.send_signal(signal.SIGTERM)
                answer = raw.makefile("rb").read().decode()
            code = process.wait(PATIENCE)
        finally:
            process.kill()
    assert answer.startswith("HTTP/1.1 200 "), answer
    assert json.loads(answer[answer.index("{") :])["usage"]["completion_tokens"] == 200
    assert code == 0


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
        (["--allow-origin", "chat.example.org"], "no origin"),
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
