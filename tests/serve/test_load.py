"""`pliant load` against a live server."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pliant.cli import main
from pliant.serve.safety import GuardLimits, Keys


def test_a_load_and_its_files(
    live: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, page = tmp_path / "load.csv", tmp_path / "load.html"
    sizes = ["--rate", "100", "--requests", "6", "--prompt-words", "4", "--max-tokens", "5"]
    patient = ["--first-deadline", "20s", "--between-deadline", "20s", "--prefill-words", "2,6"]
    files = ["--csv", str(table), "--html", str(page), "--json"]
    extra = ["--extra", '{"ignore_eos": true}']
    assert main(["load", live.url, *sizes, *patient, *files, *extra]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["requests"], found["failed"], found["tokens"]) == (6, 0, 30)
    assert found["fluid_share"] == 1 and found["prefill_curve"]["linear"] >= 0
    assert found["fluid_token_rate"] == found["tokens_per_second"] > 0
    assert found["uncounted"] == found["unfinished"] == 0
    lines = list(csv.DictReader(table.open(encoding="utf-8")))
    assert [(line["tokens"], line["deadlines"], line["missed"]) for line in lines] == [
        ("5", "5", "0")
    ] * 6
    assert page.read_text().endswith("</html>\n")


@pytest.mark.parametrize(("deadline", "least"), [("20s", 1), ("0.000000001", 0)])
def test_a_capacity(
    live: Any, capsys: pytest.CaptureFixture[str], deadline: str, least: float
) -> None:
    """Any rate is in the capacity of patient users, none in that of users who wait a nanosecond."""
    deadlines = ["--first-deadline", deadline, "--between-deadline", deadline]
    sizes = ["--rate", "500", "--requests", "2", "--max-tokens", "2", "--prompt-words", "2"]
    extra = ["--extra", '{"ignore_eos": true}', "--json"]
    assert main(["load", live.url, "--capacity", *deadlines, *sizes, *extra]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["failed"] == 0
    assert (found["capacity"] >= 500) == (least > 0)


def test_what_fails_is_counted(live: Any, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--requests", "2", "--rate", "50", "--json", "--prompt-words", "2"]
    assert main(["load", live.url, "--model", "nobody", *common]) == 1
    found = json.loads(capsys.readouterr().out)
    (error,) = found["errors"]
    assert error.startswith("status 404: There is no model 'nobody'.")
    assert found["errors"][error] == 2 and found["fluid_share"] == 0
    assert main(["load", "http://127.0.0.1:9", *common[:4], *common[5:]]) == 1
    said = capsys.readouterr()
    assert "2 x ConnectionRefusedError" in said.out and "None of 2 requests" in said.err


def test_keys_and_rates_that_fail_say_so(serve: Any, capsys: pytest.CaptureFixture[str]) -> None:
    own = serve(Keys(["secret-of-ann"]), guard=GuardLimits(requests_per_minute=3))
    common = ["--requests", "3", "--rate", "50", "--json", "--prompt-words", "2", "--warm-up", "1"]
    assert main(["load", own.url, "--key", "wrong", *common]) == 1
    refused = json.loads(capsys.readouterr().out)["errors"]
    assert any(error.startswith("status 401: The key is missing or wrong") for error in refused)
    assert main(["load", own.url, "--key", "secret-of-ann", *common]) == 0
    errors = json.loads(capsys.readouterr().out)["errors"]
    (error,) = errors
    assert error.startswith("status 429: More than 3 requests a minute") and errors[error] == 1


def test_what_was_measured_before_ctrl_c_is_kept(live: Any, tmp_path: Path) -> None:
    """A request a second of which the first is answered, and then the user has had enough."""
    table = tmp_path / "load.csv"
    trace = tmp_path / "trace.jsonl"
    line = '{"at": %d, "words": 2, "max_tokens": 2}\n'
    trace.write_text("".join(line % at for at in (0, 0, 600)))
    command = [sys.executable, "-m", "pliant.cli", "load", live.url, "--trace", str(trace),
               "--json", "--csv", str(table), "--warm-up", "0"]  # fmt: skip
    before = live.service.room.scheduler.counts.written_tokens
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        end = time.monotonic() + 60
        while live.service.room.scheduler.counts.written_tokens < before + 4:
            assert time.monotonic() < end and process.poll() is None
            time.sleep(0.05)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        said, notes = process.communicate(timeout=60)
    found = json.loads(said)
    assert (found["requests"], found["unfinished"], found["failed"]) == (2, 1, 0)
    assert len(table.read_text().splitlines()) == 3
    assert process.returncode == 1 and "2 of 3 requests" in notes


@pytest.mark.parametrize(
    "flags",
    [["--arrivals", "never"], ["--extra", "[]"], ["--prefill-words", "x"], ["--rate", "0"],
     ["--rate", "nan"], ["--trace", "/nowhere"], ["--capacity", "--trace", __file__]],
    ids=lambda flags: flags[0],
)  # fmt: skip
def test_what_makes_no_sense(live: Any, flags: list[str]) -> None:
    assert main(["load", live.url, *flags]) in (1, 2)


@pytest.mark.parametrize("url", ["localhost:8321", "ftp://x", "http://", "http://x:port"])
def test_what_is_no_address(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["load", url, "--requests", "1"]) == 2
    assert "http://HOST:PORT" in capsys.readouterr().err
