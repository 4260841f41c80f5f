"""The same model in the other engine, or the reasons why it is not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from pliant.artifact import Artifact
from pliant.errors import UsageError, VerificationError
from pliant.export import export_gguf, export_hf, plan_gguf, plan_hf, storage_of
from pliant.export.target_engine import TargetEngine
from pliant.recipes.verify_target import require, tolerance_of, verify_target

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
PEER_PYTHON = os.environ.get("PLIANT_PEER_PYTHON") or sys.executable


def has_llama_cpp() -> bool:
    probe = [PEER_PYTHON, "-c", "import llama_cpp"]
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0


needs_llama_cpp = pytest.mark.skipif(
    not has_llama_cpp(), reason="no llama-cpp-python here or at PLIANT_PEER_PYTHON"
)


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    from interop_models import quick_artifact, tiny_checkpoint

    folder = tmp_path_factory.mktemp("models")
    names = ("llama", "qwen2", "gemma3")
    return {
        name: quick_artifact(tiny_checkpoint(name, folder / name), folder / f"{name}.pliant")
        for name in names
    }


def test_a_folder_is_the_same_model_in_transformers(artifacts: Any, tmp_path: Path) -> None:
    artifact = artifacts["llama"]
    export_hf(plan_hf(artifact, "d3-b4", "float32"), "d3-b4", tmp_path / "out")
    report = verify_target(artifact, "d3-b4", "hf", tmp_path / "out", "float32")
    require(report)
    assert report.engine.startswith("transformers") and not report.skipped
    texts = [prompt for prompt in report.prompts if prompt.same_ids is not None]
    assert len(texts) == 7 and all(prompt.same_ids for prompt in texts)
    assert all(prompt.greedy == prompt.greedy_asked == 64 for prompt in texts)
    assert max(prompt.kl_nats for prompt in texts) < 1e-6


def test_another_model_is_found_out(artifacts: Any, tmp_path: Path) -> None:
    artifact = artifacts["llama"]
    export_hf(plan_hf(artifact, "d3-b4", "float32"), "d3-b4", tmp_path / "out")
    report = verify_target(artifact, "d3-b3", "hf", tmp_path / "out", "float32")
    with pytest.raises(VerificationError, match="logits differ"):
        require(report)


def test_each_failure_is_a_sentence() -> None:
    from pliant.recipes.verify_target import PromptCheck, TargetReport

    good = PromptCheck(
        name="a", tokens=3, same_ids=True, worst=0.01, kl_nats=0.0, top1=1.0, greedy=64,
        greedy_asked=64, greedy_gap=0.0,
    )  # fmt: skip
    change = msgspec.structs.replace
    bad = (
        change(good, same_ids=False), change(good, worst=0.2), change(good, worst=np.nan),
        change(good, greedy=9, greedy_gap=0.5), change(good, greedy=9, greedy_gap=0.05), good,
    )  # fmt: skip
    report = TargetReport(
        target="hf", engine="x", tolerance=0.1, load_seconds=0.0, prompts=bad, skipped={}
    )
    assert len(report.failures) == 4
    assert "token ids differ" in report.failures[0] and "token 10 differs" in report.failures[3]


def test_tolerances_are_those_of_the_loosest_kind() -> None:
    assert tolerance_of("30 F32") < tolerance_of("29 F32, 1 F16") < tolerance_of("1 Q4_0, 2 F32")


def test_engines_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="cannot be run"):
        TargetEngine("hf", tmp_path, python=str(tmp_path / "python"))
    with pytest.raises(UsageError, match="pip install llama-cpp-python"):
        TargetEngine("gguf", tmp_path)
    empty = tmp_path / "empty"
    empty.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    empty.chmod(0o755)
    with pytest.raises(UsageError, match=r"No module named .* pip install"):
        TargetEngine("hf", tmp_path, python=str(empty))
    (tmp_path / "junk").write_bytes(b"junk")
    with pytest.raises(UsageError, match="is not what `pliant export"):
        storage_of("hf", tmp_path)


@needs_llama_cpp
@pytest.mark.parametrize(
    ("name", "address", "kind"),
    [("llama", "", "F32"), ("llama", "d3-w0.5-b3", "exact"), ("qwen2", "d2-b4", "Q4_1"),
     ("gemma3", "", "F16")],
)  # fmt: skip
def test_a_file_is_the_same_model_in_llama_cpp(
    name: str, address: str, kind: str, artifacts: Any, tmp_path: Path
) -> None:
    pytest.importorskip("gguf", reason="the package gguf of the extra `export` is missing")
    artifact = artifacts[name]
    export_gguf(plan_gguf(artifact, address, kind), address, tmp_path / "out.gguf")
    storage = storage_of("gguf", tmp_path / "out.gguf")
    report = verify_target(
        artifact, address, "gguf", tmp_path / "out.gguf", storage, python=PEER_PYTHON
    )
    require(report)
    assert report.engine.startswith("llama.cpp") and len(report.prompts) == 7
