"""`tune_shapes`: every shape better, the build takes them, runs resume, bad input is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pliant.artifact import Artifact, verify
from pliant.bits import codecs
from pliant.errors import (
    CheckpointError,
    DataError,
    InterruptedJobError,
    OutOfSpaceError,
    UsageError,
)
from pliant.models import Checkpoint, Supernet
from pliant.recipes import one_for_all
from pliant.recipes.build import build
from pliant.recipes.build_options import BuildOptions
from pliant.recipes.one_for_all import build_tuned, tune_shapes
from pliant.recipes.tuned_checkpoint import RECORD_FILE, read_record
from pliant.shape import WidthOrders
from pliant.tune import LOG_FILE, ShapeTuner, StopRequest, TuneOptions

OPTIONS = BuildOptions(windows=4, window_tokens=64)
TUNE = TuneOptions(steps=6, batch_tokens=256, micro_tokens=128, window_tokens=64, warmup_steps=1,
                   teacher_tokens=32)  # fmt: skip


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = np.random.default_rng(1).choice(["fox", "dog", "tree", "sleeps", "jumps"], 800)
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text(" ".join(words))
    return path


@pytest.fixture(scope="module")
def tuned(random_checkpoint: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tuned checkpoint; do not change its files."""
    folder = tmp_path_factory.mktemp("tuned") / "tuned"
    tune_shapes(random_checkpoint, folder, [text], TUNE, options=OPTIONS)
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return Supernet.from_checkpoint(Checkpoint.open(folder)).weights


def test_every_reported_shape_is_better_and_the_files_are_whole(
    random_checkpoint: Path, tuned: Path
) -> None:
    record = read_record(tuned, Checkpoint.open(tuned).spec)
    assert record is not None
    receipt = record.receipt
    assert set(receipt.losses_before) == set(receipt.losses_after)
    assert {"d4-w1", "d2-w1"} < set(receipt.losses_before)
    for name, before in receipt.losses_before.items():
        assert receipt.losses_after[name] < before, name
    assert len((tuned / LOG_FILE).read_text().splitlines()) == TUNE.steps
    assert not tuned.with_name("tuned.tuning").exists()
    assert (tuned / "tokenizer.json").read_bytes() == (
        random_checkpoint / "tokenizer.json"
    ).read_bytes()


def test_stock_transformers_load_it(tuned: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tuned, torch_dtype=torch.float32)
    tokens_BT = torch.arange(1, 30)[None]
    with torch.no_grad():
        expected = theirs(tokens_BT).logits
        found = Supernet.from_checkpoint(Checkpoint.open(tuned))(tokens_BT)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


def test_the_artifact_holds_the_tuned_weights_and_their_shapes(tuned: Path, tmp_path: Path) -> None:
    output = tmp_path / "x.pliant"
    # To nearest, so that what is stored is known to half a step.
    build(tuned, output, options=replace(OPTIONS, rounding="nearest"))
    verify(output)
    artifact = Artifact.open(output)
    record = read_record(tuned, artifact.spec)
    assert record is not None
    manifest = artifact.manifest
    assert manifest.orders == WidthOrders.identity(artifact.spec)
    ((method, path),) = record.depth_paths.items()
    assert manifest.default_depth_method == method
    assert artifact.depth_path() == path.blocks
    # Measured anew: the losses are those of the tuned weights.
    assert manifest.depth_paths[method].losses[2] == pytest.approx(
        record.receipt.losses_after["d2-w1"], rel=1e-5
    )
    expected = weights(tuned)["blocks.1.up"]
    decoded = codecs["uniform"].decode(artifact.encoded("blocks.1.up"), 8)
    assert np.abs(decoded - expected.numpy()).max() <= 0.52 * expected.abs().max() / 128


def test_build_tuned_is_the_build_of_the_tuned_checkpoint(
    random_checkpoint: Path, text: Path, tuned: Path, tmp_path: Path
) -> None:
    one, two = tmp_path / "one.pliant", tmp_path / "two.pliant"
    build_tuned(random_checkpoint, one, [text], TUNE, options=OPTIONS)
    build(tuned, two, options=OPTIONS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.pliant", "two.pliant"]
    first, second = Artifact.open(one), Artifact.open(two)
    for name in ("embedding", "blocks.0.q", "blocks.3.down"):
        assert np.array_equal(first.planes(name), second.planes(name)), name
    assert first.manifest.source.name == random_checkpoint.name


def test_several_processes_do_not_build_one_artifact(
    random_checkpoint: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="2 processes; tune with them by pliant tune-shapes"):
        build_tuned(random_checkpoint, tmp_path / "x.pliant", [text], TUNE, options=OPTIONS)
    assert not list(tmp_path.iterdir())


def test_finer_shapes_are_tuned_too_and_the_build_takes_the_same(
    random_checkpoint: Path, text: Path, tmp_path: Path
) -> None:
    options = replace(OPTIONS, finer="greedy", rounding="nearest")
    folder, output = tmp_path / "tuned", tmp_path / "x.pliant"
    tune_shapes(random_checkpoint, folder, [text], TUNE, options=options)
    record = read_record(folder, Checkpoint.open(folder).spec)
    assert record is not None
    path, ranking = record.finer.half_path, record.finer.width_ranking
    assert path is not None and ranking is not None
    assert max(path.blocks) == 8 and record.receipt.num_shapes > 30
    lines = (folder / LOG_FILE).read_text().splitlines()
    names = {entry["shape"] for line in lines for entry in json.loads(line)["shapes"]}
    assert any(name.startswith("h") for name in names) and any("-g" in name for name in names)
    build(folder, output, options=options)
    manifest = Artifact.open(output).manifest
    assert manifest.half_path is not None
    # The same halves, their losses measured on the tuned weights; the same ranking.
    assert manifest.half_path.blocks == path.blocks
    assert manifest.half_path.losses[8] < path.losses[8]
    assert manifest.width_ranking == ranking
    with pytest.raises(UsageError, match="finer was greedy and is None now"):
        tune_shapes(random_checkpoint, folder, [text], TUNE, options=OPTIONS)


def test_a_stopped_tuning_goes_on_and_ends_in_the_same_bits(
    random_checkpoint: Path, text: Path, tuned: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    run = ShapeTuner.run

    def stopped(self: ShapeTuner, stop: StopRequest, report: object) -> None:
        def after_two(stage: str, done: int, total: int) -> None:
            stop.requested = done >= 2

        run(self, stop, after_two)

    output = tmp_path / "again"
    with monkeypatch.context() as patch:
        patch.setattr(ShapeTuner, "run", stopped)
        with pytest.raises(InterruptedJobError, match="goes on from there"):
            tune_shapes(random_checkpoint, output, [text], TUNE, options=OPTIONS)
    assert not output.exists()
    with pytest.raises(UsageError, match=r"other settings: matrix_rate was 0.004 and is 0.5 now"):
        tune_shapes(
            random_checkpoint, output, [text], replace(TUNE, matrix_rate=0.5), options=OPTIONS
        )

    def not_again(*args: object, **named: object) -> None:
        raise AssertionError("choices are stored")

    monkeypatch.setattr(one_for_all, "find_width_orders", not_again)
    tune_shapes(random_checkpoint, output, [text], TUNE, options=OPTIONS)
    for name, weight in weights(tuned).items():
        assert torch.equal(weights(output)[name], weight), name


def test_a_finished_output_is_returned_and_another_refused(
    random_checkpoint: Path, text: Path, tuned: Path, tmp_path: Path
) -> None:
    before = (tuned / RECORD_FILE).read_bytes()
    receipt = tune_shapes(random_checkpoint, tuned, [text], TUNE, options=OPTIONS)
    assert receipt.steps == TUNE.steps
    assert (tuned / RECORD_FILE).read_bytes() == before
    assert not tuned.with_name("tuned.tuning").exists()
    with pytest.raises(UsageError, match=r"steps was 6 and is 7 now.*--force"):
        tune_shapes(random_checkpoint, tuned, [text], replace(TUNE, steps=7), options=OPTIONS)
    (tmp_path / "other").mkdir()
    with pytest.raises(UsageError, match="no tuned checkpoint"):
        tune_shapes(random_checkpoint, tmp_path / "other", [text], TUNE, options=OPTIONS)


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "holds no text"), (" \n", "holds no text"), ("Once.", "fewer than two windows")],
)
def test_texts_too_small_are_refused_before_any_work(
    random_checkpoint: Path, tmp_path: Path, content: str, message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(Supernet, "from_checkpoint", None)
    (tmp_path / "small.txt").write_text(content)
    with pytest.raises(DataError, match=message):
        tune_shapes(random_checkpoint, tmp_path / "x", [tmp_path / "small.txt"], TUNE)
    with pytest.raises(DataError, match="needs text"):
        tune_shapes(random_checkpoint, tmp_path / "x", [], TUNE)


def test_text_that_is_hardly_covered_or_read_often_is_warned_of(tuned: Path) -> None:
    record = read_record(tuned, Checkpoint.open(tuned).spec)
    assert record is not None
    hardly, = (w for w in record.receipt.warnings if "worse than" not in w)  # fmt: skip
    assert "hardly covers words.txt: 1.00 bytes per token" in hardly


def test_a_text_read_many_times_is_warned_of(random_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("the fox jumps " * 20)
    notes: list[str] = []
    tune_shapes(
        random_checkpoint, tmp_path / "x", [tmp_path / "short.txt"], replace(TUNE, steps=5),
        options=OPTIONS, note=notes.append,
    )  # fmt: skip
    assert any("will be read 5 times" in note for note in notes)


def test_memory_and_devices_are_checked_first(
    random_checkpoint: Path, text: Path, tmp_path: Path
) -> None:
    with pytest.raises(OutOfSpaceError, match="one window alone needs"):
        tune_shapes(random_checkpoint, tmp_path / "x", [text], TUNE, max_ram=10**6)
    with pytest.raises(UsageError, match="no device 'tpu9000'"):
        tune_shapes(random_checkpoint, tmp_path / "x", [text], TUNE, device="tpu9000")
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="no CUDA device"):
            tune_shapes(random_checkpoint, tmp_path / "x", [text], TUNE, device="cuda")
    assert list(tmp_path.iterdir()) == []


def path_of(record: dict[str, Any]) -> dict[str, Any]:
    (path,) = record["depth_paths"].values()
    return dict(path)


@pytest.mark.parametrize("damage", ["torn", "blocks", "version", "halves", "ranking"])
def test_a_damaged_record_is_refused(tuned: Path, tmp_path: Path, damage: str) -> None:
    spec = Checkpoint.open(tuned).spec
    record = json.loads((tuned / RECORD_FILE).read_bytes())
    if damage == "blocks":
        (path,) = record["depth_paths"].values()
        path["choices"][1]["blocks"] = [0, 1, 99]
    if damage == "halves":
        choice = {"blocks": [0, 1, 99], "loss": 1.0}
        record["finer"]["half_path"] = {**path_of(record), "choices": [choice]}
    if damage == "ranking":
        record["finer"]["width_ranking"] = {"units": [0, 1, 2]}
    if damage == "version":
        record["version"] = 2
    content = json.dumps(record)
    (tmp_path / RECORD_FILE).write_text(content[:-40] if damage == "torn" else content)
    with pytest.raises(CheckpointError, match="is damaged"):
        read_record(tmp_path, spec)
    assert read_record(tmp_path / "nothing", spec) is None
