"""`pliant bench` on a small artifact: figures that have to agree, requests that cannot be met."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pliant.artifact import Artifact
from pliant.costs import decode_traffic
from pliant.measurement import Measurement

Run = Callable[..., Any]
SHORT = ("--prompt", 12, "--generate", 4, "--repeat", 3)


@pytest.fixture(autouse=True)
def quick_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe of bandwidth reads a few megabytes here."""
    monkeypatch.setattr("pliant.runtime.bandwidth.probe_bytes", lambda: 2**22)


def test_figures_agree_with_each_other(pliant: Run, pristine: Path) -> None:
    ran = pliant(
        "bench", pristine, "--subnet", "b4", "--subnet", "d2-w0.5-b3", "--threads", "1,2",
        *SHORT, "--json",
    )  # fmt: skip
    assert ran.code == 0
    data = ran.data
    cases = [(line["address"], line["threads"]) for line in data["results"]]
    assert cases == [("b4", 1), ("b4", 2), ("d2-w0.5-b3", 1), ("d2-w0.5-b3", 2)]
    rates = {probe["threads"]: probe["gigabytes_per_second"] for probe in data["probes"]}
    artifact = Artifact.open(pristine)
    for line in data["results"]:
        speed = line["speed"]
        # 12 tokens of prompt and half of the 4 behind it.
        traffic = decode_traffic(artifact.subnet(line["address"]), 14)
        assert line["bytes_per_token"] == traffic.total_bytes
        assert speed["weight_bytes"] + speed["cache_bytes"] == traffic.total_bytes
        bandwidth = speed["decode"]["median"] * traffic.total_bytes / 1e9
        assert speed["bandwidth"]["median"] == pytest.approx(bandwidth)
        assert line["share"] == pytest.approx(bandwidth / rates[line["threads"]])
        assert speed["first_token"]["median"] == pytest.approx(12 / speed["prefill"]["median"])
        assert speed["decode"]["n"] == 3
        assert speed["memory_bytes"] > speed["weight_bytes"]
        assert data["peak_memory_bytes"] > speed["memory_bytes"]
        assert line["load"]["seconds"] > 0
    assert "about" in ran.err
    assert len(data["steps"]) == 8


def test_what_it_writes_teaches_plans_of_another_machine(
    pliant: Run, pristine: Path, tmp_path: Path
) -> None:
    ran = pliant("bench", pristine, "--subnet", "b4", "--subnet", "d2-w0.5-b3", "--subnet", "b8",
                 *SHORT, "--json", "--quiet")  # fmt: skip
    written = tmp_path / "there.json"
    written.write_text(ran.out)
    flags = ("-d", "l4", "--context", 100, "--json")
    before = pliant("plan", pristine, *flags).data["devices"][0]["chosen"]
    after = pliant("plan", pristine, *flags, "--measurements", written).data["devices"][0]["chosen"]
    assert "data sheet" in before["decode"]["basis"]
    assert after["decode"]["basis"] == "6 measurements there"
    assert after["decode"]["seconds"] > before["decode"]["seconds"]
    kept = tmp_path / "box.json"
    shown = pliant("devices", "l4", "--measurements", written, "--output", kept)
    assert shown.code == 0 and "6 steps" in shown.out
    again = pliant("plan", pristine, "-d", kept, "--context", 100, "--json").data["devices"][0]
    assert again["device"] == "box" and again["chosen"]["decode"] == after["decode"]
    flags = ("fit", pristine, "--memory", "10MB", "--dry-run", "--device", "l4", "--json")
    fast = 2 / after["decode"]["seconds"]
    there = pliant(*flags, "--tokens-per-second", fast, "--measurements", written)
    least = pliant(*flags, "--tokens-per-second", 1e-3, "--measurements", written)
    assert there.code in (0, 3) and least.code == 0
    assert there.code == 3 or there.data["candidates"] < least.data["candidates"]


@pytest.mark.parametrize(
    "arguments, word",
    [
        (("plan", "qwen2.5-0.5b", "-d", "l4", "--measurements", "none.json"), "cannot be read"),
        (("plan", "qwen2.5-0.5b", "-d", "l4,a100", "--measurements", "none.json"), "NAME="),
        (("devices", "--measurements", "none.json"), "Which device"),
        (("devices", "l4", "--output", "box.txt"), "box.txt"),
    ],
)
def test_measurements_that_cannot_be_used(
    pliant: Run, arguments: tuple[str, ...], word: str
) -> None:
    ran = pliant(*arguments)
    assert ran.code == 2 and word in ran.err


def test_an_address_is_a_subnet_too_and_each_is_measured_once(pliant: Run, pristine: Path) -> None:
    flags = ("--subnet", "b4", "--subnet", "b2", "--threads", "1,1", *SHORT, "--json", "--quiet")
    ran = pliant("bench", f"{pristine}@b2", *flags)
    assert [line["address"] for line in ran.data["results"]] == ["b2", "b4"]
    assert ran.err == ""


def test_the_table_names_what_was_measured(pliant: Run, pristine: Path) -> None:
    ran = pliant("bench", pristine, "--threads", 1, *SHORT)
    assert ran.code == 0
    assert "12 + 4 tokens" in ran.out
    assert "full" in ran.out
    assert "read bandwidth" in ran.out


def test_the_chart_shows_every_subnet(pliant: Run, pristine: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    chart = tmp_path / "speed.svg"
    flags = ("--subnet", "b2", "--subnet", "d2-b4", "--threads", "1,2", *SHORT)
    assert pliant("bench", pristine, *flags, "--chart", chart).code == 0
    picture = chart.read_text()
    assert picture.rstrip().endswith("</svg>")
    # Text is drawn as outlines, with the words beside them as comments.
    for words in ("b2", "d2-b4", "2 threads", "decode, token/s", "all of the read bandwidth"):
        assert f"<!-- {words} -->" in picture


def test_a_short_context_shortens_what_is_left_open(pliant: Run, pristine: Path) -> None:
    ran = pliant("bench", pristine, "--threads", 1, "--repeat", 1, "--json")
    assert ran.data["workload"] == {"prompt_tokens": 204, "decode_tokens": 52, "repeats": 1}
    ran = pliant("bench", pristine, "--threads", 1, "--repeat", 1, "--prompt", 250, "--json")
    assert ran.data["workload"] == {"prompt_tokens": 250, "decode_tokens": 6, "repeats": 1}


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--threads", "0"], "0 threads were asked for; use 1 to 256"),
        (["--threads", "1,10000"], "10000 threads were asked for"),
        (["--threads", "two"], "'two' are no numbers of threads"),
        (["--threads", "1,"], "'1,' are no numbers of threads"),
        (["--threads", "-1"], "-1 threads were asked for"),
        (["--prompt", "300"], "context is 256"),
        (["--prompt", "200", "--generate", "57"], "200 + 57 tokens were asked for"),
        (["--generate", "256"], "context is 256"),
        (["--prompt", "0"], "--prompt"),
        (["--repeat", "0"], "--repeat"),
        (["--subnet", "maxi"], "no cut 'maxi'"),
        (["--subnet", "b4", "--subnet", "d9-b4"], "9 blocks"),
        (["--chart", "speed.txt"], "end its name in .svg"),
        (["--chart", "nowhere/speed.svg"], "is no folder"),
    ],
    ids=lambda part: " ".join(part) if isinstance(part, list) else "",
)
def test_requests_that_cannot_be(
    pliant: Run,
    pristine: Path,
    flags: list[str],
    says: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pliant.recipes.bench.read_rate", _never)
    ran = pliant("bench", pristine, *flags)
    assert ran.code == 2
    assert says in ran.err
    assert ran.out == ""
    assert ran.err.count("\n") == 1


def _never(threads: int) -> Measurement:
    raise AssertionError("nothing may be measured before the request is checked")


def test_a_restless_machine_is_told(
    pliant: Run, pristine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = iter([20.0, 17.0])
    monkeypatch.setattr(
        "pliant.recipes.bench.read_rate",
        lambda threads: Measurement.of([next(rates)], "GB/s", "read bandwidth"),
    )
    ran = pliant("bench", pristine, "--threads", 1, *SHORT, "--json")
    assert ran.data["probes"][0]["drift"] == pytest.approx(3 / 18.5)
    assert any("20.0 GB/s before and 17.0 GB/s after" in text for text in ran.data["warnings"])
    assert "not quiet" in ran.err


def test_without_matplotlib_a_chart_is_unsupported(
    pliant: Run, pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    ran = pliant("bench", pristine, "--chart", tmp_path / "speed.svg", "--json")
    assert ran.code == 5
    assert "pliant[plot]" in json.loads(ran.err)["error"]["message"]
