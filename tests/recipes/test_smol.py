"""Adapters from a tuning to an artifact and its engine; bad input is refused."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from pliant.artifact import Artifact, verify
from pliant.bits import codecs
from pliant.errors import CheckpointError, OutOfSpaceError, UsageError, VerificationError
from pliant.evaluate import verify_golden
from pliant.export import DenseWeights
from pliant.models import Checkpoint, Supernet
from pliant.recipes.build import build
from pliant.recipes.build_options import BuildOptions
from pliant.recipes.one_for_all import tune_shapes
from pliant.recipes.tuned_checkpoint import ADAPTERS_FILE, read_adapters, read_record
from pliant.runtime import Chunk, Engine
from pliant.tune import TuneOptions

OPTIONS = BuildOptions(windows=4, window_tokens=64, rounding="nearest")
TUNE = TuneOptions(steps=6, batch_tokens=128, micro_tokens=128, window_tokens=64, warmup_steps=1,
                   teacher_tokens=32, mode="smol", rank=4, vector_rate=0.01)  # fmt: skip


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = np.random.default_rng(1).choice(["fox", "dog", "tree", "sleeps", "jumps"], 800)
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text(" ".join(words))
    return path


@pytest.fixture(scope="module")
def tuned(random_checkpoint: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with adapters; do not change its files."""
    folder = tmp_path_factory.mktemp("tuned") / "tuned"
    tune_shapes(random_checkpoint, folder, [text], TUNE, options=OPTIONS)
    return folder


@pytest.fixture(scope="module")
def artifact(tuned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("adapted") / "x.pliant"
    build(tuned, output, options=OPTIONS)
    return output


def test_the_weights_are_those_of_the_source_in_order(random_checkpoint: Path, tuned: Path) -> None:
    source = Supernet.from_checkpoint(Checkpoint.open(random_checkpoint))
    found = Supernet.from_checkpoint(Checkpoint.open(tuned))
    tokens_BT = torch.arange(20)[None]
    torch.testing.assert_close(found(tokens_BT), source(tokens_BT), rtol=0, atol=1e-3)
    record = read_record(tuned, found.spec)
    assert record is not None and record.adapters == TUNE.adapters
    receipt = record.receipt
    for name, before in receipt.losses_before.items():
        # The full shape is its own teacher: anchored adapters spare it.
        after = receipt.losses_after[name]
        assert (after == before) if name == "d4-w1" else (after < before), name


def test_the_engine_runs_what_the_supernet_runs(tuned: Path, artifact: Path) -> None:
    """The planes of the artifact with its adapters, in torch and in the engine, at every cut."""
    verify(artifact)
    opened = Artifact.open(artifact)
    spec, codec = opened.spec, codecs["uniform"]
    weights = {
        name: torch.from_numpy(codec.decode(opened.encoded(name), 8) if len(size) == 2
                               else opened.vector(name).copy())
        for name, size in spec.tensors().items()
    }  # fmt: skip
    model = Supernet.from_tensors(spec, weights)
    record = read_record(tuned, spec)
    assert record is not None and record.adapters is not None
    model.adapters = read_adapters(tuned, spec, record.adapters)
    tokens = np.arange(1, 30, dtype=np.int32)
    for address in ("", "d3", "d2-w0.5"):
        subnet = opened.subnet(address)
        gates = {e: float(g) for e, g in model.adapters.gates(subnet.shape).items()}
        assert opened.gates(subnet.shape) == gates
        with torch.no_grad():
            expected = model(torch.from_numpy(tokens.astype(np.int64))[None], subnet.shape)[0]
        with Engine(opened, subnet, 1, "float32", "float32") as engine:
            cache = engine.new_cache(32)
            found = engine.forward_chunk([Chunk(tokens, cache, logits="all")])[0]
        # Factors rounded to fp16 in the file and to int8 in the engine, through few blocks.
        spread = expected.std().item()
        assert np.abs(found - expected.numpy()).mean() < 0.01 * spread, address


def test_measured_losses_are_those_of_the_adapted_model(tuned: Path, artifact: Path) -> None:
    opened, record = Artifact.open(artifact), read_record(tuned, Checkpoint.open(tuned).spec)
    assert record is not None
    sensitivities = opened.manifest.sensitivities
    assert sensitivities is not None
    after = record.receipt.losses_after
    assert sensitivities.dense_loss == pytest.approx(after["d4-w1"], rel=1e-5)
    assert sensitivities.depth[2] == pytest.approx(after["d2-w1"], rel=1e-5)
    assert sensitivities.width[0.5] == pytest.approx(after["d4-w0.5"], rel=1e-5)
    assert sensitivities.planes[8] == pytest.approx(sensitivities.dense_loss, rel=0.01)


def test_golden_logits_know_the_adapters(artifact: Path, tmp_path: Path) -> None:
    def check(path: Path) -> None:
        opened = Artifact.open(path)
        verify_golden(
            path / "golden.json",
            lambda address, activations: Engine(
                opened, opened.subnet(address), activations=activations
            ),
            Engine(opened, opened.subnet()).kernels,
        )

    check(artifact)
    changed = shutil.copytree(artifact, tmp_path / "changed.pliant")
    tensor = load_file(artifact / "adapters.safetensors")["blocks.3.o.b"]
    content = bytearray((changed / "adapters.safetensors").read_bytes())
    begin = content.index(tensor.tobytes())
    content[begin : begin + tensor.nbytes] = (5 * tensor + np.float16(0.1)).tobytes()
    (changed / "adapters.safetensors").write_bytes(content)
    with pytest.raises(VerificationError, match=r"golden|logits"):
        check(changed)


def test_a_build_with_adapters_is_the_same_every_time(
    tuned: Path, artifact: Path, tmp_path: Path
) -> None:
    output = tmp_path / "y.pliant"
    build(tuned, output, options=OPTIONS)
    for name in ("adapters.safetensors", "plane-0.safetensors"):
        assert (output / name).read_bytes() == (artifact / name).read_bytes()


def test_adapters_are_not_tuned_over(tuned: Path, text: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has adapters from a tuning"):
        tune_shapes(tuned, tmp_path / "again", [text], replace(TUNE, mode="full"), options=OPTIONS)


def test_other_settings_are_named(random_checkpoint: Path, tuned: Path, text: Path) -> None:
    with pytest.raises(UsageError, match="rank was 4 and is 5 now"):
        tune_shapes(random_checkpoint, tuned, [text], replace(TUNE, rank=5), options=OPTIONS)
    with pytest.raises(OutOfSpaceError, match="memory"):
        tune_shapes(
            random_checkpoint, tuned.with_name("z"), [text], TUNE, options=OPTIONS, max_ram=10**6
        )


def test_damaged_adapters_are_found(tuned: Path, tmp_path: Path) -> None:
    damaged = shutil.copytree(tuned, tmp_path / "damaged")
    (damaged / ADAPTERS_FILE).write_bytes(b"torn")
    with pytest.raises(CheckpointError, match="cannot be read"):
        build(damaged, tmp_path / "x.pliant", options=OPTIONS)


@pytest.mark.parametrize("address", ["", "d2-w0.5-b4"])
def test_an_export_has_the_adapters_in_its_weights(artifact: Path, address: str) -> None:
    """Dense weights and adapters in the engine give one function."""
    opened = Artifact.open(artifact)
    subnet = opened.subnet(address)
    weights = DenseWeights(opened, subnet)
    tensors = {name: torch.from_numpy(value.copy()) for name, value in weights.tensors()}
    dense = Supernet.from_tensors(weights.spec, tensors)
    tokens_T = np.arange(20, dtype=np.int32)
    with Engine(opened, subnet, 1, "float32", "float32") as engine:
        chunk = Chunk(tokens_T, engine.new_cache(20), logits="all")
        (logits_TV,) = engine.forward_chunk([chunk])
    found_TV = dense(torch.from_numpy(tokens_T.astype(np.int64))[None])[0].detach().numpy()
    np.testing.assert_allclose(found_TV, logits_TV, atol=2e-4)
    assert not weights.is_adapted("embedding") and not weights.is_adapted("blocks.0.mlp_norm")
    stored, planes, kept = weights.origin("blocks.0.o")
    bare_OI = weights.codec.decode(opened.encoded(stored), planes, *kept)
    adds = address != ""  # anchored: nothing is added to the full shape
    assert weights.is_adapted("blocks.0.o") == adds
    assert np.any(weights.tensor("blocks.0.o") != bare_OI) == adds
    assert opened.adapter_rank(subnet.shape) == (TUNE.rank if adds else 0)
    assert (opened.low_rank(subnet.shape) is None) != adds
