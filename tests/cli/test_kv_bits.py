"""`--kv-bits`: what runs, what is counted, and what cannot be asked for."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pliant.artifact import Artifact
from pliant.bits.cache import CacheFormat
from pliant.costs import decode_traffic

Run = Callable[..., Any]


def test_eval_reads_with_the_cache_asked_for(pliant: Run, pristine: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 12, encoding="utf-8")
    flags = ("--text", text, "--threads", 1, "--json", "--quiet")
    plain, same, coarse = (
        pliant("eval", pristine, *flags, *extra).data
        for extra in ((), ("--kv-bits", 16), ("--kv-bits", 2, "--kv-window", 0))
    )
    assert plain == same
    assert (plain["kv_bits"], coarse["kv_bits"], coarse["kv_window"]) == (16, 2, 0)
    assert plain["bits_per_byte"] != coarse["bits_per_byte"]
    assert coarse["kl_nats"] > plain["kl_nats"]  # the full model keeps its float16 cache


def test_run_writes_on_with_codes(pliant: Run, pristine: Path) -> None:
    flags = ("--max-tokens", 140, "--temperature", 0, "--threads", 1, "--json", "--quiet")
    found = [
        pliant("run", pristine, "Once upon a time", *flags, "--kv-bits", bits).data["text"]
        for bits in (3, 3)
    ]
    assert found[0] == found[1]


def test_fit_counts_the_bytes_of_codes(pliant: Run, pristine: Path) -> None:
    flags = ("--memory", "10MB", "--dry-run", "--json")
    costs = [
        pliant("fit", pristine, "--context", 256, "--kv-bits", bits, *flags).data["best_predicted"]
        for bits in (16, 2)
    ]
    assert f"{costs[0]['cut']}-k2" == costs[1]["cut"]
    assert costs[1]["cache"] == {"bits": 2, "window": 64}
    subnet = Artifact.open(pristine).subnet(costs[0]["cut"])
    groups, head_dim = sum(subnet.shape.groups), subnet.spec.head_dim
    expected = [CacheFormat(bits=bits).num_bytes(groups, head_dim, 256) for bits in (16, 2)]
    assert [cost["cache_bytes"] for cost in costs] == expected
    assert expected[1] < expected[0]


def test_bench_counts_what_is_read(
    pliant: Run, pristine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pliant.runtime.bandwidth.probe_bytes", lambda: 2**22)
    flags = ("--prompt", 200, "--generate", 4, "--repeat", 1, "--threads", 1, "--json", "--quiet")
    line = pliant("bench", pristine, *flags, "--kv-bits", 4).data["results"][0]
    subnet = Artifact.open(pristine).subnet("")
    traffic = decode_traffic(subnet, 202, cache=CacheFormat(bits=4))
    assert line["bytes_per_token"] == traffic.total_bytes
    assert traffic.cache_bytes < decode_traffic(subnet, 202).cache_bytes


@pytest.mark.parametrize("flags", [("--kv-bits", 5), ("--kv-bits", 4, "--kv-window", 20)])
@pytest.mark.parametrize("command", [("run", "hello"), ("eval",), ("bench",)])
def test_what_cannot_be(
    pliant: Run, pristine: Path, command: tuple[str, ...], flags: tuple[Any, ...]
) -> None:
    ran = pliant(command[0], pristine, *command[1:], *flags)
    assert ran.code == 2
    assert "asked for; use" in ran.err


def test_a_cut_holds_its_cache(pliant: Run, pristine: Path, tmp_path: Path) -> None:
    """Saved or by its address, whatever runs it; --kv-bits goes before it."""
    artifact = tmp_path / "x.pliant"
    shutil.copytree(pristine, artifact)
    made = pliant("cut", artifact, "--kv-bits", 2, "--kv-window", 0, "--name", "phone", "--json")
    assert made.data["cache"] == {"bits": 2, "window": 0}
    assert Artifact.open(artifact).subnet("phone").bits.cache == CacheFormat(bits=2, window=0)
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 12, encoding="utf-8")
    flags = ("--text", text, "--threads", 1, "--json", "--quiet", "--no-reference")

    def loss(cut: str, *more: Any) -> float:
        return float(pliant("eval", f"{artifact}{cut}", *flags, *more).data["bits_per_byte"])

    planned, plain = loss("@phone"), loss("")
    assert planned == loss("", "--kv-bits", 2, "--kv-window", 0) != plain
    assert loss("@phone", "--kv-bits", 16) == plain
    assert loss("@phone", "--kv-window", 64) == loss("@k2") == loss("", "--kv-bits", 2)


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        (("--kv-bits", 4), "cut-k4"),
        (("--bits", 3, "--kv-bits", 3, "--kv-window", 128), "cut-b3-k3-window128"),
        (("--kv-bits", 8), "cut-k8"),
    ],
)
def test_cuts_are_named_by_their_cache(
    pliant: Run, pristine: Path, flags: tuple[Any, ...], name: str
) -> None:
    ran = pliant("cut", pristine, *flags, "--dry-run", "--json")
    assert ran.data["address"] == f"{pristine}@{name}"


def test_inspect_counts_the_cache_of_the_plan(pliant: Run, pristine: Path) -> None:
    found = pliant("inspect", f"{pristine}@b4-k3", "--context", 250, "--json").data["subnet"]
    subnet = Artifact.open(pristine).subnet("b4")
    groups = sum(subnet.shape.groups)
    expected = CacheFormat(bits=3).num_bytes(groups, subnet.spec.head_dim, 250)
    assert (found["cache"], found["cache_bytes"]) == ({"bits": 3, "window": 64}, expected)


def test_a_talk_stays_in_its_cache(
    pliant: Run, pristine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def talk(*flags: Any) -> str:
        monkeypatch.setattr("sys.stdin", io.StringIO("/switch b4-k4\n/switch b3\n"))
        return str(pliant("chat", pristine, "--max-tokens", 4, *flags).err)

    refused, told = talk(), talk("--kv-bits", 3)
    assert "holds its cache as int4 behind the last 64 tokens, this engine as float16" in refused
    assert "switched to b3" in refused
    assert "switched to b4-k4" in told


def test_fit_saves_what_no_address_says(pliant: Run, pristine: Path, tmp_path: Path) -> None:
    artifact = tmp_path / "x.pliant"
    shutil.copytree(pristine, artifact)
    flags = ("--memory", "10MB", "--study", 0, "--verify", 1, "--limit", 400, "--json")
    found = pliant("fit", artifact, "--kv-bits", 2, "--kv-window", 0, *flags).data
    assert found["chosen"]["cache"] == {"bits": 2, "window": 0}
    cut = found["address"].rpartition("@")[2]
    assert Artifact.open(artifact).subnet(cut).bits.cache == CacheFormat(bits=2, window=0)
