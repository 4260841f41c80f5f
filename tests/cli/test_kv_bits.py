"""`--kv-bits`: what runs, what is counted, and what cannot be asked for."""

from __future__ import annotations

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
    assert costs[0]["cut"] == costs[1]["cut"]
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
