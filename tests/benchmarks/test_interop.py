"""The table of the interop benchmark has a cell for everything that was compared."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")


def test_every_row_has_every_cell() -> None:
    import interop
    from pliant.recipes.verify_target import PromptCheck, TargetReport

    check = PromptCheck(
        name="story", tokens=9, same_ids=True, worst=0.01, kl_nats=0.001, top1=1.0, greedy=60,
        greedy_asked=64, greedy_gap=0.02, perplexity=12.5, their_perplexity=12.50021,
    )  # fmt: skip
    report = TargetReport(
        target="hf", engine="x", tolerance=0.1, load_seconds=0.5, prompts=(check,), skipped={}
    )
    cells = interop.row(report, "float32", 2000)
    assert len(cells) + 3 == len(interop.COLUMNS)
    assert cells[1] == "1 of 1 texts" and cells[7] == "0 of 1, else 2.0% apart"
    assert cells[5:7] == ["12.5", "12.5"]


def test_every_architecture_is_compared(tmp_path: Path) -> None:
    import interop
    from interop_models import ARCHITECTURES, tiny_config
    from pliant.spec import ARCHITECTURES as READ
    from pliant.spec import read_spec

    assert {read_spec(tiny_config(name)).architecture for name in ARCHITECTURES} == set(READ)
    found = dict(interop.checkpoints(["qwen3"], tmp_path, tmp_path))
    assert list(found) == ["qwen3"] and (found["qwen3"] / "model.safetensors").is_file()
