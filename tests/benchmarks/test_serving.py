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
    import serving_models

    config = random_models.llama_config(8192, 64, 2, 4, 2, 128, context=256)
    monkeypatch.setitem(random_models.CONFIGS, "tiny", config)
    monkeypatch.setattr(serving_models, "CACHE", tmp_path)
    return serving


def test_every_case_is_answered(tiny: ModuleType) -> None:
    from serving_models import ServedModel
    from serving_table import render

    options = argparse.Namespace(
        planes=2, threads=1, words=4, tokens=6, long_words=200, prompts=2, turns=2, requests=2,
        seconds=0.01, peer_python=None,
    )  # fmt: skip
    found = tiny.measure(ServedModel("tiny", clients=(3,)), options)
    assert [line["case"] for line in found["ours"]["lines"]] == ["3 clients", "mixed"]
    for line in [*found["ours"]["lines"], found["unpaced"]]:
        assert line["failed"] == 0 and line["tokens_per_second"] > 0
    assert found["ours"]["lines"][-1]["requests"] == 4
    assert found["ours"]["capacity"]["requests_per_second"] >= 0
    # Words have five bytes or so, which are tokens here, and 256 are a context.
    assert 40 < found["long_words"] < 60 and found["planes"] == 2
    # On a busy machine so small a model writes a whole text before anybody reads.
    assert set(found["one_stream"]) == {"greedy", "drawn"}
    assert all(0 <= one["turns"] <= 2 for one in found["one_stream"].values())
    found["one_stream"] = {
        "greedy": tiny.one_stream_line([(10.0, 8.0), (8.0, 7.0), (10.0, 9.0), (10.0, 1.0)]),
        "drawn": tiny.one_stream_line([]),
    }
    found["peer"] = {"lines": found["ours"]["lines"][:1]}
    found["left_out"] = "no time"
    page = render({"models": [found]})
    assert page.count("| 3 clients |") == 2 and "Capacity, requests/s: pliant" in page
    assert page.count("| mixed |") == 1 and page.endswith("no time.")
    assert "| one stream, greedy | pliant | 7.5 |" in page
    assert "| 0.84 [0.80, 0.88] |" in page and "| one stream, drawn | pliant | - |" in page


def test_medians_and_quartiles(tiny: ModuleType) -> None:
    assert tiny.spread([4.0, 1.0, 3.0, 2.0]) == {"low": 2.0, "median": 2.5, "high": 3.0}
    assert tiny.spread([7.0]) == {"low": 7.0, "median": 7.0, "high": 7.0}


@pytest.mark.parametrize(("rate", "count"), [(0.01, 4), (0.4, 8), (1, 12), (10, 50), (999, 1000)])
def test_requests_that_try_a_rate(tiny: ModuleType, rate: float, count: int) -> None:
    assert tiny.requests_at(rate, 12, 5) == count


def test_what_is_left_out_has_a_reason() -> None:
    from serving_models import CLIENTS, served_model

    part, all_of_it = served_model("Qwen2.5-0.5B"), served_model("Qwen2.5-0.5B", everything=True)
    assert not part.peer_capacity and max(part.peer_clients) < max(CLIENTS) and part.reason
    assert all_of_it.peer_capacity and all_of_it.peer_clients == CLIENTS and not all_of_it.reason
    assert served_model("tale").peer_clients == CLIENTS
    with pytest.raises(SystemExit, match="tale, tale-750k, 15M"):
        served_model("nobody")


def test_every_thread_has_a_cost(tiny: ModuleType) -> None:
    from serving_overhead import measure

    found = measure(tiny.served_artifact("tiny", 2), tokens=8, rounds=1)
    assert set(found) == {"engine thread", "event loop", "bare engine"}
    assert all(least > 0 for least, _ in found.values())
