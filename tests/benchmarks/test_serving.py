"""The serving benchmark on a tiny model: every case, no failure."""

from __future__ import annotations

import argparse
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    pytest.importorskip("h11")
    import random_models
    import serving

    config = random_models.llama_config(8192, 64, 2, 4, 2, 128, context=256)
    monkeypatch.setitem(random_models.CONFIGS, "tiny", config)
    monkeypatch.setattr(serving, "CACHE", tmp_path)
    monkeypatch.setattr(serving, "CLIENTS", (3,))
    return serving


def test_every_case_is_answered(tiny: ModuleType) -> None:
    from serving_table import render

    options = argparse.Namespace(
        planes=2, threads=1, words=4, tokens=6, long_words=20, prompts=2, turns=2, requests=2,
        seconds=0.01, peer_python=None,
    )  # fmt: skip
    found = tiny.measure("tiny", options)
    assert [line["case"] for line in found["ours"]["lines"]] == ["3 clients", "mixed"]
    for line in [*found["ours"]["lines"], found["unpaced"]]:
        assert line["failed"] == 0 and line["tokens_per_second"] > 0
    assert found["ours"]["lines"][-1]["requests"] == 4
    assert found["ours"]["capacity"]["requests_per_second"] >= 0
    # On a busy machine so small a model writes a whole text before anybody reads.
    assert 0 <= found["one_stream"]["turns"] <= 2
    found["one_stream"] = {"turns": 2, "bare_rate": 9.0, "served_rate": 8.0,
                           "ratio": 0.875, "ratio_low": 0.8, "ratio_high": 0.9}  # fmt: skip
    found["peer"] = found["ours"]
    page = render({"models": [found]})
    assert page.count("| 3 clients |") == 2 and "Capacity, requests/s: pliant" in page
    assert "ratio 0.88 [0.80, 0.90]" in page


def test_every_thread_has_a_cost(tiny: ModuleType) -> None:
    from serving_overhead import measure

    found = measure(tiny.served_artifact("tiny", 2), tokens=8, rounds=1)
    assert set(found) == {"engine thread", "event loop", "bare engine"}
    assert all(least > 0 for least, _ in found.values())
