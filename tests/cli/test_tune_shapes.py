"""`pliant tune-shapes` and `pliant build --tune-steps` from the command line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

Run = Callable[..., Any]
#: Two steps on a few windows.
SMALL = ("--steps", 2, "--batch-tokens", 128, "--micro-tokens", 64, "--window", 32)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = np.random.default_rng(0).choice(["fox", "dog", "tree", "sleeps", "jumps"], 400)
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(" ".join(words))
    return path


def test_a_tuned_checkpoint_builds(
    pliant: Run, checkpoint: Path, text: Path, tmp_path: Path
) -> None:
    tuned = tmp_path / "tuned"
    arguments = ("tune-shapes", checkpoint, "-o", tuned, "--tune-text", text, *SMALL,
                 "--calibration", text)  # fmt: skip
    ran = pliant(*arguments, "--json", "--rate", 0.02)
    assert ran.code == 0, ran.err
    assert "tuning" in ran.err
    assert ran.data["steps"] == 2
    assert ran.data["losses_before"].keys() == ran.data["losses_after"].keys()
    built = pliant("build", tuned, "-o", tmp_path / "x.pliant", "--calibration", text)
    assert built.code == 0, built.err
    assert pliant("verify", tmp_path / "x.pliant").code == 0
    settings = json.loads((tuned / "pliant_tuning.json").read_bytes())["settings"]
    assert (settings["mode"], settings["vector_rate"], settings["balance"]) == ("smol", 0.02, False)
    again = pliant(*arguments, "--rate", 0.02)
    assert again.code == 0
    assert "-> " in again.out
    other = pliant(*arguments, "--rate", 0.02, "--seed", 5)
    assert other.code == 2
    assert "seed was 0 and is 5 now" in other.err


def test_build_tunes_on_the_way(pliant: Run, checkpoint: Path, text: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.pliant"
    ran = pliant(
        "build", checkpoint, "-o", path, "--tune-steps", 1, "--tune-text", text,
        "--calibration", text, "--json",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert pliant("verify", path).code == 0
    assert [file.name for file in tmp_path.iterdir()] == ["x.pliant"]


def test_a_dry_run_says_what_it_takes(
    pliant: Run, checkpoint: Path, text: Path, tmp_path: Path
) -> None:
    ran = pliant("tune-shapes", checkpoint, "-o", tmp_path / "x", "--tune-text", text, "--dry-run",
                 "--json", *SMALL)  # fmt: skip
    assert ran.code == 0
    assert ran.data["tokens"] == 256
    assert ran.data["memory_bytes"] > 0
    assert ran.data["parameters"] != ran.data["tuned_parameters"]  # adapters, unless --mode full
    full = pliant("tune-shapes", checkpoint, "-o", tmp_path / "x", "--tune-text", text,
                  "--dry-run", "--json", "--mode", "full", *SMALL)  # fmt: skip
    assert full.data["parameters"] == full.data["tuned_parameters"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ([], 2, "--tune-text"),
        (["--tune-text", "none.txt"], 1, "none.txt"),
        (["--tune-text", "TEXT", "--max-ram", "1MB"], 1, "one window alone"),
        (["--tune-text", "TEXT", "--precision", "int4"], 2, "int4"),
        (["--tune-text", "TEXT", "--window", "4096"], 2, "window of 4096"),
        (["--tune-text", "TEXT", "--device", "abacus"], 2, "abacus"),
        (["--tune-text", "TEXT", "--finer", "influence"], 2, "cannot be searched by 'influence'"),
    ],
)
def test_requests_that_cannot_be(
    pliant: Run, checkpoint: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    arguments: list[str], code: int, says: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    given = [str(text) if argument == "TEXT" else argument for argument in arguments]
    ran = pliant("tune-shapes", checkpoint, "-o", "out", *given, "--json")
    assert ran.code == code
    assert says in json.loads(ran.err.splitlines()[-1])["error"]["message"]
    assert not (tmp_path / "out").exists()


def test_build_needs_steps_and_text_together(
    pliant: Run, checkpoint: Path, text: Path, tmp_path: Path
) -> None:
    for flags in (["--tune-steps", 3], ["--tune-text", text]):
        ran = pliant("build", checkpoint, "-o", tmp_path / "x.pliant", *flags)
        assert ran.code == 2
        assert "together" in ran.err


def test_adapters_from_tuning_to_inspection(
    pliant: Run, checkpoint: Path, text: Path, tmp_path: Path
) -> None:
    path = tmp_path / "x.pliant"
    ran = pliant(
        "build", checkpoint, "-o", path, "--tune-steps", 1, "--tune-text", text,
        "--tune-mode", "smol", "--calibration", text, "--json",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert pliant("verify", path).code == 0
    shown = pliant("inspect", f"{path}@w0.5")
    assert "rank 16, 2 of 5 experts for a shape but the full one" in shown.out
    assert "+ adapters " in shown.out
    fields = pliant("inspect", f"{path}@w0.5", "--json").data
    assert fields["artifact"]["adapters"]["rank"] == 16
    assert sum(fields["subnet"]["experts"].values()) == 1
    assert fields["subnet"]["adapter_bytes"] > 0
    cut = pliant("cut", path, "--width", 0.5, "--name", "half")
    assert cut.code == 0, cut.err
    assert (path / "subnets" / "half.json").stat().st_size < 10_000
    plan = pliant("tune-shapes", checkpoint, "-o", tmp_path / "t", "--tune-text", text, *SMALL,
                  "--mode", "smol", "--rank", 4, "--experts", 1, "--dry-run", "--json")  # fmt: skip
    assert 0 < plan.data["tuned_parameters"] < plan.data["parameters"]
    refused = pliant("tune-shapes", checkpoint, "-o", tmp_path / "t", "--tune-text", text,
                     "--mode", "smol", "--rank", 1000)  # fmt: skip
    assert refused.code == 2
    assert "ranks lie in 1 .. 256" in refused.err
