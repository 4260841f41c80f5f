"""`pliant load` against a live server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pliant.cli import main


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
    assert len(table.read_text().splitlines()) == 7
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
    assert main(["load", live.url, "--model", "nobody", *common]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["errors"] == {"status 404": 2} and found["fluid_share"] == 0
    assert main(["load", "http://127.0.0.1:9", *common]) == 0
    assert json.loads(capsys.readouterr().out)["failed"] == 2


@pytest.mark.parametrize(
    "flags",
    [["--arrivals", "never"], ["--extra", "[]"], ["--prefill-words", "x"], ["--rate", "0"],
     ["--trace", "/nowhere"]],
    ids=lambda flags: flags[0],
)  # fmt: skip
def test_what_makes_no_sense(live: Any, flags: list[str]) -> None:
    assert main(["load", live.url, *flags]) in (1, 2)
