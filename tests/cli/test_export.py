"""`pliant export`: what it writes, says and refuses."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]


def test_a_folder_and_a_file_are_written(pliant: Run, pristine: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="the package gguf of the extra `export` is missing")
    ran = pliant("export", f"{pristine}@d2-b3", "-o", tmp_path / "out", "--json", "--no-verify")
    assert ran.code == 0 and ran.data["storage"] == "bfloat16"
    assert (tmp_path / "out" / "model.safetensors").stat().st_size > ran.data["weight_bytes"]
    ran = pliant(
        "export", f"{pristine}@d2-b3", "--to", "gguf", "-o", tmp_path / "out.gguf", "--no-verify"
    )
    assert ran.code == 0 and "14 Q4_0, 1 Q5_0" in ran.out
    assert (tmp_path / "out.gguf").read_bytes()[:4] == b"GGUF"


def test_a_dry_run_writes_nothing(pliant: Run, pristine: Path, tmp_path: Path) -> None:
    ran = pliant("export", pristine, "-o", tmp_path / "out", "--dry-run", "--json")
    assert ran.code == 0 and ran.data["num_bytes"] > 2 * 100_000
    assert not any(tmp_path.iterdir())


def test_refusals_have_their_exit_codes(pliant: Run, pristine: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    ran = pliant("export", pristine, "-o", tmp_path / "there")
    assert ran.code == 2 and "--force" in ran.err
    ran = pliant("export", pristine, "-o", tmp_path / "x", "--type", "int3")
    assert ran.code == 2 and "bf16, fp16 or fp32" in ran.err
    ran = pliant("export", f"{pristine}@d9", "-o", tmp_path / "x")
    assert ran.code == 2 and "cannot be cut to 9 blocks" in ran.err


def test_a_missing_package_is_named_with_its_command(
    pliant: Run, pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    ran = pliant("export", pristine, "--to", "gguf", "-o", tmp_path / "x.gguf")
    assert ran.code == 2 and "pip install 'pliant[export]'" in ran.err
    assert not any(tmp_path.iterdir())


def test_without_the_engine_nothing_is_written(
    pliant: Run, pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    ran = pliant("export", pristine, "-o", tmp_path / "out")
    assert ran.code == 2 and "--no-verify" in ran.err and "--peer-python" in ran.err
    ran = pliant("verify", pristine, "--in", "gguf")
    assert ran.code == 2 and "pip install llama-cpp-python" in ran.err
    assert not any(tmp_path.iterdir())


def test_a_cut_without_an_engine_is_no_request(
    pliant: Run, pristine: Path, text_file: Path
) -> None:
    ran = pliant("verify", f"{pristine}@d2")
    assert ran.code == 2 and "--in hf" in ran.err
    for option in (("--peer-python", "python"), ("--text", text_file), ("--type", "fp32")):
        ran = pliant("verify", pristine, *option)
        assert ran.code == 2 and "--in hf" in ran.err


def test_settings_for_comparisons_do_not_keep_an_artifact_from_being_verified(
    pliant: Run, pristine: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLIANT_PEER_PYTHON", "/somewhere/python")
    monkeypatch.setenv("PLIANT_TYPE", "fp32")
    monkeypatch.setenv("PLIANT_TEXT", str(text_file))
    ran = pliant("verify", pristine)
    assert ran.code == 0, ran.err
    assert "5 texts" in ran.out and "320 of 320 tokens written alike" in ran.out


def test_held_out_text_is_compared_where_it_is_given(
    pliant: Run, pristine: Path, text_file: Path, engine_here: None
) -> None:
    ran = pliant(
        "verify", f"{pristine}@d2", "--in", "hf", "--type", "fp32", "--text", text_file, "--json"
    )
    assert ran.code == 0, ran.err
    row = ran.data["comparison"]["prompts"][-1]
    assert row["name"] == text_file.name and row["tokens"] == len(text_file.read_bytes())
    assert row["same_ids"] and row["their_perplexity"] == pytest.approx(row["perplexity"], 1e-6)
    # `eval` rounds activations to 8 bits, on the same windows.
    ran = pliant("eval", f"{pristine}@d2", "--text", text_file, "--window", 256, "--json")
    assert row["perplexity"] == pytest.approx(ran.data["perplexity"], rel=0.01)
    ran = pliant("verify", pristine, "--in", "hf", "--text", text_file.parent / "none.txt")
    assert ran.code == 1 and "none.txt" in ran.err


@pytest.mark.parametrize(("worst", "code"), [(0.001, 0), (0.5, 6)])
def test_a_comparison_ends_with_its_exit_code(
    worst: float, code: int, pliant: Run, pristine: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    pytest.importorskip("torch")
    from pliant.recipes import verify_target as module

    check = module.PromptCheck(
        name="story", tokens=9, same_ids=True, worst=worst, kl_nats=0.0, top1=1.0, greedy=60,
        greedy_asked=64, greedy_gap=0.01,
    )  # fmt: skip

    def compared(artifact: Any, cut: str, target: str, path: Path, storage: str, **_: Any) -> Any:
        assert (cut, target, storage) == ("d2-b3", "hf", "float32") and path.is_dir()
        return module.TargetReport(
            target=target, engine="an engine", tolerance=module.tolerance_of("bfloat16"),
            load_seconds=0.1, prompts=(check,), skipped={"dialogue": "no template"},
        )  # fmt: skip

    monkeypatch.setattr(module, "verify_target", compared)
    address, at = f"{pristine}@d2-b3", tmp_path / "out"
    ran = pliant("export", address, "-o", at, "--type", "fp32")
    assert ran.code == code and "60 of 64, then 0.01 apart" in ran.out
    ran = pliant("verify", address, "--in", "hf", "--at", at, "--json")
    assert ran.code == code and ran.data["verified"] is (code == 0)
    assert code == 0 or "logits differ by 0.5" in ran.err
    ran = pliant("verify", address, "--in", "hf", "--type", "fp32")
    assert ran.code == code and "an engine" in ran.out
