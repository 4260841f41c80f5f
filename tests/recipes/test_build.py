"""`build`: from a checkpoint to an artifact, stopped, resumed, within limits, and bad input."""

from __future__ import annotations

import filecmp
import functools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import pliant
from pliant.artifact import Artifact, verify
from pliant.bits import ErrorFeedback, codecs
from pliant.errors import (
    CheckpointError,
    DataError,
    OutOfSpaceError,
    QualityFloorError,
    UnsupportedError,
    UsageError,
    VerificationError,
)
from pliant.models import Checkpoint, Supernet
from pliant.recipes.build import build
from pliant.recipes.build_options import BuildOptions
from pliant.recipes.quality import QualityBounds
from pliant.runtime import Chunk, Engine

OPTIONS = BuildOptions(windows=4, window_tokens=64)


def all_files(folder: Path) -> dict[str, bytes]:
    """Content of every file below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_artifact_holds_the_ordered_model_and_the_engine_computes_it(
    random_checkpoint: Path, random_artifact: Path
) -> None:
    verify(random_artifact)
    artifact = Artifact.open(random_artifact)
    ordered = Supernet.from_checkpoint(Checkpoint.open(random_checkpoint))
    assert artifact.manifest.orders is not None
    ordered.permute(artifact.manifest.orders)
    stored = {}
    for name, weight in ordered.weights.items():
        if weight.ndim == 1:
            stored[name] = torch.from_numpy(artifact.vector(name).copy())
            assert torch.equal(stored[name], weight)
            continue
        decoded = codecs["uniform"].decode(artifact.encoded(name), 8)
        stored[name] = torch.from_numpy(decoded)
        if name.startswith("blocks."):
            # With error feedback a weight may be far off, since others make up for it.
            assert (stored[name] - weight).norm() <= 0.1 * weight.norm()
        else:
            # Half a step of 1/128 of the largest weight; its scale may be stretched by 3.5 %.
            assert (stored[name] - weight).abs().max() <= 0.5 * 1.036 * weight.abs().max() / 128

    tokens = np.random.default_rng(0).integers(artifact.spec.vocab_size, size=60)
    with Engine(
        artifact, artifact.subnet(""), activations="float32", cache_type="float32"
    ) as engine:
        chunk = Chunk(tokens.astype(np.int32), engine.new_cache(60), logits="all")
        (logits,) = engine.forward_chunk([chunk])
    with torch.no_grad():
        expected = Supernet.from_tensors(artifact.spec, stored)(torch.from_numpy(tokens)[None])[0]
    # The same sums in another order: fp32 rounding, through four blocks.
    np.testing.assert_allclose(logits, expected.numpy(), rtol=0, atol=1e-4)


def test_a_reconstruction_that_was_stopped_goes_on_to_the_same_bytes(
    random_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped behind two blocks; the second run reads them from the partial files."""
    from pliant.calibrate import BlockReconstruction, ReconstructionOptions
    from pliant.recipes import encoding

    few = functools.partial(ReconstructionOptions, steps=3)
    monkeypatch.setattr(encoding, "ReconstructionOptions", few)
    options = BuildOptions(windows=4, window_tokens=64, rounding="reconstruct", planes=5)
    learn, learned = BlockReconstruction.learn, []

    def stop_at_two(self: BlockReconstruction, block: int, start: object) -> object:
        learned.append(block)
        if learned == [0, 1, 2]:
            raise KeyboardInterrupt
        return learn(self, block, start)  # type: ignore[arg-type]

    monkeypatch.setattr(BlockReconstruction, "learn", stop_at_two)
    output = tmp_path / "stopped.pliant"
    with pytest.raises(KeyboardInterrupt):
        build(random_checkpoint, output, options=options)
    receipt = build(random_checkpoint, output, options=options)
    assert receipt.was_resumed
    assert set(receipt.block_errors) == {0, 1, 2, 3}
    build(random_checkpoint, tmp_path / "whole.pliant", options=options)
    assert learned == [0, 1, 2, 2, 3, 0, 1, 2, 3]
    assert all_files(output) == all_files(tmp_path / "whole.pliant")


def test_rounding_to_nearest_looks_at_no_text(random_checkpoint: Path, tmp_path: Path) -> None:
    options = BuildOptions(windows=4, window_tokens=64, rounding="nearest")
    build(random_checkpoint, tmp_path / "nearest.pliant", options=options)
    artifact = Artifact.open(tmp_path / "nearest.pliant")
    ordered = Supernet.from_checkpoint(Checkpoint.open(random_checkpoint))
    assert artifact.manifest.orders is not None
    ordered.permute(artifact.manifest.orders)
    for name, weight in ordered.weights.items():
        if weight.ndim == 2:
            expected = codecs["uniform"].encode(weight.numpy())
            for plane, content in zip(artifact.planes(name), expected.planes, strict=True):
                np.testing.assert_array_equal(plane, content)


def test_too_few_tokens_for_error_feedback_are_refused(
    random_checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"Calibration has 8 tokens; error feedback needs \d+"):
        build(
            random_checkpoint, tmp_path / "x.pliant",
            options=BuildOptions(windows=2, window_tokens=4),
        )  # fmt: skip
    assert not list(tmp_path.iterdir())
    with pytest.raises(UsageError, match="There is no rounding 'up'"):
        BuildOptions(rounding="up")  # type: ignore[arg-type]


def test_orders_paths_and_sensitivities_are_recorded(random_artifact: Path) -> None:
    manifest = Artifact.open(random_artifact).manifest
    assert manifest.orders is not None and len(manifest.orders.groups) == 4
    assert set(manifest.depth_paths) == {"amoeba", "greedy"}
    assert set(manifest.depth_path()) == {4, 3, 2}
    assert manifest.sensitivities is not None
    assert manifest.sensitivities.dense_loss == manifest.sensitivities.depth[4]
    assert manifest.sensitivities.dense_loss == manifest.sensitivities.width[1.0]
    assert set(manifest.sensitivities.planes) == set(range(1, 9))
    losses = [manifest.sensitivities.planes[count] for count in (1, 8)]
    dense = manifest.sensitivities.dense_loss
    assert abs(losses[1] - dense) < abs(losses[0] - dense)


def test_golden_texts_are_written_by_the_artifact_itself(random_artifact: Path) -> None:
    import pliant
    from pliant.evaluate import check_golden_texts, read_golden_texts

    with pliant.open(random_artifact) as model:
        golden = read_golden_texts(model.artifact)
        assert golden is not None and golden.planes == model.artifact.num_planes == 8
        engine = model.engine(threads=1, activations="float32", cache_type="float32").engine
        check = check_golden_texts(engine, model.tokenizer, golden, 8)
        assert check.texts >= 5 and check.greedy == check.greedy_asked > 0
        other = model.engine("b2", threads=1, activations="float32").engine
        with pytest.raises(VerificationError, match="not that of the build"):
            check_golden_texts(other, model.tokenizer, golden, 8)


def test_receipts_say_how_far_the_planes_are(random_artifact: Path) -> None:
    stored = Artifact.open(random_artifact).manifest.receipts
    receipts = {receipt.address: receipt for receipt in stored}
    assert set(receipts) == {"b2", "b3", "b4", "full"}
    for few, many in (("b2", "b3"), ("b3", "b4"), ("b4", "full")):
        assert receipts[few].kl_nats > receipts[many].kl_nats > 0
        assert receipts[few].effective_bits < receipts[many].effective_bits
    for receipt in receipts.values():
        assert receipt.kl_median_nats <= receipt.kl_p99_nats <= receipt.kl_max_nats
        assert 0 <= receipt.top1_agreement <= 1
        assert receipt.bits_per_byte > 0 and receipt.canary
    assert receipts["full"].top1_agreement > receipts["b2"].top1_agreement


def test_a_build_beyond_its_bound_is_refused_and_kept(
    random_checkpoint: Path, tmp_path: Path
) -> None:
    output = tmp_path / "x.pliant"
    with pytest.raises(QualityFloorError, match=r"nats per token .* and 0 were allowed") as found:
        build(random_checkpoint, output, options=OPTIONS, bounds=QualityBounds(max_kl=0.0))
    assert found.value.exit_code == 4
    assert not output.exists()
    receipt = build(random_checkpoint, output, options=OPTIONS, bounds=QualityBounds(max_kl=1.0))
    assert receipt.was_resumed and output.exists()
    assert len(receipt.receipts) == 4
    assert all(list(errors) == [2, 3, 4, 8] for errors in receipt.block_errors.values())
    assert all(errors[2] > errors[3] > errors[8] > 0 for errors in receipt.block_errors.values())


def test_a_block_beyond_its_bound_ends_the_build_before_it_measures(
    random_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "x.pliant"
    bounds = QualityBounds(max_block_error=1e-9)
    with pytest.raises(
        QualityFloorError, match=r"block \d is off by .* 1e-09 was allowed"
    ) as found:
        build(random_checkpoint, output, options=OPTIONS, bounds=bounds)
    assert found.value.exit_code == 4
    assert not output.exists()
    # What is kept holds the weights: nothing is encoded again.
    monkeypatch.delattr(ErrorFeedback, "of")
    bounds = QualityBounds(max_block_error=0.1)
    receipt = build(random_checkpoint, output, options=OPTIONS, bounds=bounds)
    assert receipt.was_resumed and output.exists()


def test_the_same_inputs_give_the_same_bytes(
    random_checkpoint: Path, random_artifact: Path, tmp_path: Path
) -> None:
    build(random_checkpoint, tmp_path / "again.pliant", options=OPTIONS)
    assert all_files(tmp_path / "again.pliant") == all_files(random_artifact)


def test_streaming_under_a_memory_limit_gives_the_same_bytes(
    random_checkpoint: Path, random_artifact: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from pliant.recipes import build as recipe
    from pliant.recipes.memory_plan import plan_memory

    def one_block_at_a_time(*args: object, **named: object) -> object:
        import msgspec

        return msgspec.structs.replace(plan_memory(*args, **named), weights=1)  # type: ignore[arg-type]

    monkeypatch.setattr(recipe, "plan_memory", one_block_at_a_time)
    build(random_checkpoint, tmp_path / "streamed.pliant", options=OPTIONS)
    assert all_files(tmp_path / "streamed.pliant") == all_files(random_artifact)


def test_a_limit_that_is_too_small_is_refused_before_the_start(
    random_checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(OutOfSpaceError, match=r"at least and 10\.0 MB were given"):
        build(random_checkpoint, tmp_path / "x.pliant", max_ram="10MB")
    assert list(tmp_path.iterdir()) == []


BUILD_SCRIPT = """
import sys
import torch
torch.set_num_threads(1)
from pliant.recipes.build import build
from pliant.recipes.build_options import BuildOptions
print("started", flush=True)
build(sys.argv[1], sys.argv[2], options=BuildOptions(windows=4, window_tokens=64))
print("built", flush=True)
"""


def test_killed_anywhere_the_rerun_gives_the_same_bytes(
    random_checkpoint: Path, random_artifact: Path, tmp_path: Path
) -> None:
    """One build is killed by SIGKILL again and again at random moments until it is through."""
    output = tmp_path / "killed.pliant"
    draw = random.Random(0)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    kills = 0
    for attempt in range(40):
        process = subprocess.Popen(
            [sys.executable, "-c", BUILD_SCRIPT, str(random_checkpoint), str(output)],
            stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        if attempt < 6:
            time.sleep(draw.uniform(0.0, 0.6))
            process.send_signal(signal.SIGKILL)
        process.wait()
        kills += process.returncode == -signal.SIGKILL
        if output.exists():
            break
    assert kills >= 1
    assert all_files(output) == all_files(random_artifact)
    assert not output.with_name("killed.pliant.partial").exists()


def test_other_inputs_do_not_take_up_a_partial_build(
    random_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pliant.recipes import build as recipe

    def stop(*args: object, **named: object) -> None:
        raise KeyboardInterrupt

    output = tmp_path / "x.pliant"
    with monkeypatch.context() as patch:
        patch.setattr(recipe, "measure_sensitivities", stop)
        with pytest.raises(KeyboardInterrupt):
            build(random_checkpoint, output, options=OPTIONS)
    with pytest.raises(UsageError, match="other inputs"):
        build(random_checkpoint, output, options=BuildOptions(planes=4, windows=4))
    receipt = build(random_checkpoint, output, options=OPTIONS)
    assert receipt.was_resumed


def test_an_existing_artifact_is_only_replaced_on_request(
    random_checkpoint: Path, random_artifact: Path, tmp_path: Path
) -> None:
    output = tmp_path / "x.pliant"
    shutil.copytree(random_artifact, output)
    with pytest.raises(UsageError, match="exists already"):
        build(random_checkpoint, output, options=OPTIONS)
    assert filecmp.cmp(output / "pliant.json", random_artifact / "pliant.json", shallow=False)
    options = BuildOptions(planes=2, windows=4, window_tokens=64)
    build(random_checkpoint, output, options=options, replace=True)
    assert Artifact.open(output).num_planes == 2


def test_nan_weights_are_named_and_leave_no_artifact(
    random_checkpoint: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "nan"
    shutil.copytree(random_checkpoint, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.2.mlp.up_proj.weight"][3, 5] = float("nan")
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.layers\.2\.mlp\.up_proj\.weight"):
        build(folder, tmp_path / "x.pliant", options=OPTIONS)
    assert not (tmp_path / "x.pliant").exists()


def test_config_and_weights_that_disagree(random_checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    shutil.copytree(random_checkpoint, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 192}))
    with pytest.raises(CheckpointError, match=r"\[192, 48\].*\[160, 48\]"):
        build(folder, tmp_path / "x.pliant")


def test_an_unsupported_architecture_is_refused_before_weights_are_read(
    random_checkpoint: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "other"
    shutil.copytree(random_checkpoint, folder)
    (folder / "model.safetensors").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "mamba"}))
    with pytest.raises(UnsupportedError, match="mamba"):
        build(folder, tmp_path / "x.pliant")


@pytest.mark.parametrize("text", ["", "  \n", "Once upon a time."])
def test_a_calibration_text_that_is_too_short(
    random_checkpoint: Path, tmp_path: Path, text: str
) -> None:
    (tmp_path / "short.txt").write_text(text)
    with pytest.raises(DataError):
        build(random_checkpoint, tmp_path / "x.pliant", calibration=tmp_path / "short.txt")


def test_calibration_text_that_is_not_utf8(random_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("Märchen".encode("latin-1") * 1000)
    with pytest.raises(DataError, match="UTF-8"):
        build(random_checkpoint, tmp_path / "x.pliant", calibration=tmp_path / "latin.txt")


def test_the_facade_builds_and_writes_text(random_checkpoint: Path, tmp_path: Path) -> None:
    receipt = pliant.build(random_checkpoint, tmp_path / "x.pliant", options=OPTIONS)
    assert receipt.artifact_bytes == Artifact.open(tmp_path / "x.pliant").num_bytes
    with pliant.open(tmp_path / "x.pliant") as model:
        text = model.engine("d3-w0.5-b4").generate("Once upon a time", max_tokens=5)
    assert len(text.tokens) == 5
