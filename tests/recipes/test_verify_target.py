"""The same model in the other engine, or the reasons why it is not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from pliant.artifact import Artifact, Findings, SourceRecord
from pliant.errors import UsageError, VerificationError
from pliant.evaluate import GOLDEN_TEXTS_FILE, golden_texts_json, read_golden_texts
from pliant.export import export_gguf, export_hf, plan_gguf, plan_hf, storage_of
from pliant.export.target_engine import TargetEngine
from pliant.recipes.verify_target import require, tolerance_of, verify_target
from pliant.shape import SubnetShape
from pliant.subnet import Subnet

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
FINDINGS = Findings(source=SourceRecord("other", "0" * 64))
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
    made = {
        name: quick_artifact(tiny_checkpoint(name, folder / name), folder / f"{name}.pliant")
        for name in names
    }
    # Wide enough for K-quants, whose blocks have 256 columns.
    sizes = {"hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 8,
             "num_hidden_layers": 2}  # fmt: skip
    wide = tiny_checkpoint("llama", folder / "wide", **sizes)
    return {**made, "wide": quick_artifact(wide, folder / "wide.pliant")}


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


def test_the_golden_texts_of_the_artifact_are_what_is_compared(
    artifacts: Any, tmp_path: Path
) -> None:
    """Ids and continuations come from the file: where it says otherwise, that is a difference."""
    change = msgspec.structs.replace
    path = Path(shutil.copytree(artifacts["llama"].path, tmp_path / "other.pliant"))
    artifact = Artifact.open(path)
    export_hf(plan_hf(artifact, "", "float32"), "", tmp_path / "out")
    golden = read_golden_texts(artifact)
    assert golden is not None and len(golden.texts) == 7
    story, question = golden.texts[0], golden.texts[5]
    likely = story.greedy[20]
    texts = (
        change(story, name="mine", greedy=(*story.greedy[:20], likely ^ 1, *story.greedy[21:])),
        change(question, ids=(*question.ids[:-1], question.ids[-1] ^ 1)),
    )
    changed = golden_texts_json(change(golden, texts=texts))
    artifact = artifact.amend(FINDINGS, {GOLDEN_TEXTS_FILE: changed})
    report = verify_target(
        artifact, "", "hf", tmp_path / "out", "float32",
        documents={"held out": ["Once upon a time.", "The fox said: hello! " * 40]},
    )  # fmt: skip
    mine, other, text = report.prompts
    assert (mine.name, mine.same_ids, mine.greedy) == ("mine", True, 20)
    assert (other.name, other.same_ids) == ("question", False)
    # Windows: a text of 17 letters, then pieces of the context of 192.
    assert (text.name, text.same_ids, text.greedy_asked) == ("held out", True, 0)
    assert text.tokens > 192
    for prompt in report.prompts:
        assert prompt.perplexity is not None and prompt.their_perplexity is not None
        assert abs(prompt.perplexity / prompt.their_perplexity - 1) < 1e-5


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
     ("gemma3", "", "F16"), ("llama", "halved", "exact"), ("gemma3", "halved", "F32"),
     ("wide", "b4", "Q4_K"), ("wide", "b5", "Q5_K"), ("wide", "b5", "Q6_K")],
)  # fmt: skip
def test_a_file_is_the_same_model_in_llama_cpp(
    name: str, address: str, kind: str, artifacts: Any, tmp_path: Path
) -> None:
    pytest.importorskip("gguf", reason="the package gguf of the extra `export` is missing")
    artifact = artifacts[name]
    if address == "halved":
        whole = artifact.subnet("b4")
        groups, neurons = list(whole.shape.groups), list(whole.shape.neurons)
        groups[1], groups[2], neurons[3], neurons[0] = 0, 1, 0, 64
        shape = SubnetShape(whole.shape.blocks, tuple(groups), tuple(neurons))
        artifact.save_subnet(address, Subnet(whole.spec, shape, whole.bits))
    export_gguf(plan_gguf(artifact, address, kind), address, tmp_path / "out.gguf")
    storage = storage_of("gguf", tmp_path / "out.gguf")
    report = verify_target(
        artifact, address, "gguf", tmp_path / "out.gguf", storage, python=PEER_PYTHON
    )
    require(report)
    assert report.engine.startswith("llama.cpp") and len(report.prompts) == 7
