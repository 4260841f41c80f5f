"""The serving benchmark on a tiny model: every case, no failure."""

from __future__ import annotations

import argparse
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    pytest.importorskip("httpx")
    import random_models
    import serving

    config = random_models.llama_config(512, 64, 2, 4, 2, 128, context=256)
    monkeypatch.setitem(random_models.CONFIGS, "tiny", config)
    monkeypatch.setattr(serving, "CACHE", tmp_path)
    monkeypatch.setattr(serving, "CLIENTS", (3,))
    return serving


def test_every_case_is_answered(tiny: ModuleType) -> None:
    options = argparse.Namespace(planes=2, threads=1, words=4, tokens=6, long_words=20, prompts=2)
    found = tiny.measure("tiny", options)
    assert [line["case"] for line in found["paced"]] == ["3 clients", "mixed"]
    for line in [*found["paced"], *found["unpaced"]]:
        assert line["failed"] == 0 and line["tokens_per_second"] > 0
    assert found["paced"][-1]["requests"] == 4
