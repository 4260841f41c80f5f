"""`pliant build` from the command line: a real checkpoint in, an artifact that verifies out."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

pytest.importorskip("torch")

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two thousand tokens: few windows, so that a build takes a second."""
    words = np.random.default_rng(0).choice(["fox", "dog", "tree", "sleeps", "jumps"], 400)
    path = tmp_path_factory.mktemp("calibration") / "calibration.txt"
    path.write_text(" ".join(words))
    return path


@pytest.fixture
def broken(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint that a test may damage."""
    return Path(shutil.copytree(checkpoint, tmp_path / "broken"))


def test_rounding_is_timed_before_it_starts(pliant: Run, checkpoint: Path, tmp_path: Path) -> None:
    arguments = ("build", checkpoint, "-o", tmp_path / "X.pliant", "--dry-run", "--json")
    learned = pliant(*arguments, "--rounding", "reconstruct").data
    plain = pliant(*arguments).data
    assert learned["rounding_seconds"] > plain["rounding_seconds"] > 0
    assert plain["memory_bytes"] <= learned["memory_bytes"]
    assert "to round all blocks" in pliant(*arguments[:-1], "--rounding", "reconstruct").out
    assert pliant(*arguments, "--rounding", "nearest").data["rounding_seconds"] is None


def test_a_data_free_build_runs_and_measures_nothing(
    pliant: Run, checkpoint: Path, tmp_path: Path
) -> None:
    path = tmp_path / "free.pliant"
    arguments = ("build", checkpoint, "-o", path, "--data-free")
    assert pliant(*arguments, "--dry-run", "--json").data["memory_bytes"] > 0
    ran = pliant(*arguments)
    assert ran.code == 0, ran.err
    assert "not measured" in ran.out
    assert pliant("verify", path).code == 0
    assert pliant("fit", path, "--memory", "100MB").code == 5
    for more in (("--max-kl", "0"), ("--rounding", "reconstruct"), ("--finer", "greedy")):
        refused = pliant(*arguments, "--force", *more)
        assert refused.code == 2 and "leave out" in refused.err


def test_build_makes_an_artifact_that_every_command_takes(
    pliant: Run, checkpoint: Path, calibration: Path, tmp_path: Path
) -> None:
    path = tmp_path / "new.pliant"
    ran = pliant("build", checkpoint, "-o", path, "--calibration", calibration, "--json")
    assert ran.code == 0, ran.err
    assert ran.data["artifact_bytes"] == sum(
        file.stat().st_size for file in path.rglob("*") if file.is_file()
    )
    assert "building" in ran.err
    assert pliant("verify", path).code == 0
    shown = pliant("inspect", path, "--json").data["artifact"]
    assert shown["sensitivities"]["planes"].keys() == {str(count) for count in range(1, 9)}
    memory = pliant("inspect", path, "--json").data["subnet"]["memory_bytes"]
    fitted = pliant("fit", path, "--memory", int(memory * 0.7), "--limit", "300", "--json")
    assert fitted.code == 0, fitted.err
    again = pliant("build", checkpoint, "-o", path)
    assert again.code == 2
    assert "--force" in again.err
    forced = pliant("build", checkpoint, "-o", path, "--calibration", calibration, "--force")
    assert forced.code == 0, forced.err


def test_a_dry_build_says_what_it_costs_and_writes_nothing(
    pliant: Run, checkpoint: Path, tmp_path: Path
) -> None:
    path = tmp_path / "new.pliant"
    ran = pliant("build", checkpoint, "-o", path, "--planes", 4, "--dry-run", "--json")
    assert ran.code == 0
    assert ran.data["planes"] == 4
    assert ran.data["memory_bytes"] > ran.data["artifact_bytes"] > 0
    signs = pliant("build", checkpoint, "-o", path, "--codec", "shift-add", "--dry-run", "--json")
    assert (signs.data["codec"], signs.data["planes"]) == ("shift-add", 4)
    assert signs.data["artifact_bytes"] == ran.data["artifact_bytes"]
    own = pliant("build", checkpoint, "-o", path, "--codec", "shift-add", "--average-planes", 2.5,
                 "--dry-run")  # fmt: skip
    assert "4 planes, 2.5 on average, shift-add" in own.out
    free = pliant("build", checkpoint, "-o", path, "--data-free", "--dry-run")
    assert free.code == 0 and "8 planes, uniform" in free.out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [(["no/where/at/all", "-o", "X.pliant"], 1, "no/where/at/all"),
     (["CHECKPOINT", "-o", "X.zip"], 2, ".pliant"),
     (["CHECKPOINT", "-o", "X.pliant", "--max-ram", "1MB"], 1, "--max-ram"),
     (["CHECKPOINT", "-o", "X.pliant", "--calibration", "none.txt"], 1, "none.txt"),
     (["CHECKPOINT", "-o", "X.pliant", "--planes", "9"], 2, "--planes"),
     (["CHECKPOINT", "-o", "X.pliant", "--codec", "shift-add-acc"], 5, "rotation"),
     (["CHECKPOINT", "-o", "X.pliant", "--codec", "shift-add", "--planes", "5"], 2, "1 to 4"),
     (["CHECKPOINT", "-o", "X.pliant", "--average-planes", "2.5"], 2, "every prefix is good"),
     (["CHECKPOINT", "-o", "X.pliant", "--codec", "up"], 2, "There is no codec 'up'")],
)  # fmt: skip
def test_requests_that_cannot_be(
    pliant: Run, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    arguments: list[str], code: int, says: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    ran = pliant("build", *(str(checkpoint) if a == "CHECKPOINT" else a for a in arguments))
    assert ran.code == code
    assert says in ran.err
    assert not list(tmp_path.glob("X*"))


def test_a_checkpoint_that_disagrees_with_itself(pliant: Run, broken: Path, tmp_path: Path) -> None:
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"intermediate_size": 128}))
    ran = pliant("build", broken, "-o", tmp_path / "X.pliant")
    assert ran.code == 1
    assert "gate_proj" in ran.err


def test_an_unsupported_model_is_refused_before_its_weights(
    pliant: Run, broken: Path, tmp_path: Path
) -> None:
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"model_type": "mamba"}))
    (broken / "model.safetensors").write_bytes(b"not read")
    ran = pliant("build", broken, "-o", tmp_path / "X.pliant")
    assert ran.code == 5
    assert "mamba" in ran.err


def test_nan_weights_are_named(
    pliant: Run, broken: Path, calibration: Path, tmp_path: Path
) -> None:
    tensors = load_file(broken / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name][3, 5] = np.nan
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    ran = pliant("build", broken, "-o", tmp_path / "X.pliant", "--calibration", calibration)
    assert ran.code == 1
    assert name in ran.err
    assert not (tmp_path / "X.pliant").exists()


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_build_goes_on(
    pliant: Run, checkpoint: Path, calibration: Path, tmp_path: Path, stop: signal.Signals
) -> None:
    path = tmp_path / "X.pliant"
    arguments = ["build", str(checkpoint), "-o", str(path), "--calibration", str(calibration)]
    process = subprocess.Popen(
        [sys.executable, "-m", "pliant.cli", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert process.stderr is not None
    # This line is written after the plan, just before the work begins.
    assert b"building" in process.stderr.readline()
    time.sleep(0.3)
    process.send_signal(stop)
    _, message = process.communicate(timeout=120)
    # The build may have been done before the signal came.
    assert process.returncode in (0, 75), message
    if process.returncode == 75:
        assert message.startswith(b"pliant: Interrupted")
        assert not path.exists()
        ran = pliant(*arguments)
        assert ran.code == 0, ran.err
    assert pliant("verify", path).code == 0


def test_a_gguf_file_is_a_source(pliant: Run, pristine: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="the package gguf of the extra `export` is missing")
    source = tmp_path / "tiny.gguf"
    ran = pliant("export", pristine, "--to", "gguf", "--type", "F32", "-o", source, "--no-verify")
    assert ran.code == 0, ran.err
    ran = pliant("build", source, "-o", tmp_path / "x.pliant", "--dry-run", "--json")
    assert ran.code == 0 and ran.data["architecture"] == "llama", ran.err
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.gguf"]
    source.write_bytes(source.read_bytes()[:5000])
    ran = pliant("build", source, "-o", tmp_path / "x.pliant", "--dry-run")
    assert ran.code == 1 and "not a whole GGUF file" in ran.err
