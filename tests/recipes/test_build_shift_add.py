"""An artifact of planes of signs: built, cut, run, exported, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pliant.artifact import Artifact, verify
from pliant.bits import codecs
from pliant.errors import UnsupportedError, UsageError
from pliant.export.dense import DenseWeights
from pliant.models import Supernet
from pliant.recipes.build import build
from pliant.recipes.build_options import BuildOptions
from pliant.recipes.matrix_planes import block_plane_bytes
from pliant.runtime import Chunk, Engine
from pliant.runtime.plane_product import PlaneProduct
from pliant.search.candidate import candidates
from pliant.search.predictor import axis_increases
from pliant.subnet import CutAddress

OPTIONS = BuildOptions(windows=4, window_tokens=64)


def test_shift_add_runs_in_any_cut(random_checkpoint: Path, tmp_path: Path) -> None:
    """Built, verified, and run by the engine as the codec decodes it: whole, and cut."""
    options = BuildOptions(windows=4, window_tokens=64, codec="shift-add", planes=3)
    build(random_checkpoint, tmp_path / "signs.pliant", options=options)
    verify(tmp_path / "signs.pliant")
    artifact = Artifact.open(tmp_path / "signs.pliant")
    assert artifact.manifest.codec.name == "shift-add"
    assert artifact.plane_form == "signs"
    codec, tokens = codecs["shift-add"], np.arange(40, dtype=np.int32)
    for address in ("", "d3-w0.5-b2"):
        subnet = artifact.subnet(address)
        weights = DenseWeights(artifact, subnet)
        dense_weights = {name: torch.from_numpy(value.copy()) for name, value in weights.tensors()}
        expected = Supernet.from_tensors(weights.spec, dense_weights)
        with Engine(artifact, subnet, activations="float32", cache_type="float32") as engine:
            chunk = Chunk(tokens, engine.new_cache(40), logits="all")
            (logits,) = engine.forward_chunk([chunk])
        with torch.no_grad():
            dense = expected(torch.from_numpy(tokens.astype(np.int64))[None])[0]
        np.testing.assert_allclose(logits, dense.numpy(), rtol=0, atol=1e-4)
    with pytest.raises(UsageError, match="head_screen"):
        Engine(artifact, artifact.subnet(""), head_screen=1)
    product = PlaneProduct(artifact, "blocks.1.up", artifact.spec.tensors()["blocks.1.up"], 3)
    decoded_OI = codec.decode(artifact.encoded("blocks.1.up"), 3)
    np.testing.assert_array_equal(product.rows(np.array([5])), decoded_OI[5:6])


def test_matrices_have_planes_of_their_own_where_an_average_is_asked_for(
    random_checkpoint: Path, tmp_path: Path
) -> None:
    options = BuildOptions(
        windows=4, window_tokens=64, codec="shift-add", planes=3, average_planes=1.75
    )
    receipt = build(random_checkpoint, tmp_path / "own.pliant", options=options)
    verify(tmp_path / "own.pliant")
    artifact = Artifact.open(tmp_path / "own.pliant")
    full, sizes = artifact.subnet(), block_plane_bytes(artifact.spec)
    read = {cut.name: cut.planes for cut in full.matrices()}
    assert read["embedding"] == 3
    used = sum(read[name] * size for name, size in sizes.items())
    budget = 1.75 * sum(sizes.values())
    assert budget - max(sizes.values()) < used <= budget
    # What is stored is what is read, and each matrix was made for its number.
    assert {name: len(artifact.planes(name)) for name in read} == read
    for name in sizes:
        scales = artifact.encoded(name).scales.view(np.float16).reshape(-1, 4, 8)
        assert scales[:, : read[name]].any(axis=(0, 2)).all()
        assert not scales[:, read[name] :].any()
    # Measured at 1 to 3 planes all the same, and of each matrix at what it has.
    sensitivities = artifact.manifest.sensitivities
    assert sensitivities is not None and list(sensitivities.planes) == [1, 2, 3]
    assert all(max(costs) == read[name] for name, costs in sensitivities.matrices.items())
    assert receipt.receipts[-1].effective_bits == pytest.approx(full.effective_bits, rel=1e-4)
    dense, at_three = sensitivities.dense_loss, sensitivities.planes[3]
    (candidate,) = candidates(
        [CutAddress(planes=3)], sensitivities, lambda cut: artifact.subnet(str(cut)), lambda _: 1
    )
    expected = at_three + sensitivities.vocabulary_planes[3] - dense
    assert candidate.predicted_loss == pytest.approx(expected)
    increases = axis_increases(
        sensitivities, artifact.spec, 64, lambda count: artifact.subnet(f"b{count}")
    )
    assert increases(full)[2] == pytest.approx(np.log(at_three / dense))
    with Engine(artifact, full) as engine:
        chunk = Chunk(np.arange(40, dtype=np.int32), engine.new_cache(40), logits="all")
        assert np.isfinite(engine.forward_chunk([chunk])[0]).all()


def test_what_averages_of_planes_are_refused() -> None:
    with pytest.raises(UsageError, match="codec uniform stores planes of which every prefix"):
        BuildOptions(average_planes=2.5)
    for average in (0.9, 3.1, float("nan")):
        with pytest.raises(UsageError, match="on average asked for; a matrix has 1 to 3"):
            BuildOptions(codec="shift-add", planes=3, average_planes=average)


def test_what_shift_add_refuses() -> None:
    with pytest.raises(UsageError, match="shift-add makes 1 to 4"):
        BuildOptions(codec="shift-add")
    with pytest.raises(UnsupportedError, match="rotation of inputs and outputs that is not folded"):
        BuildOptions(codec="shift-add-acc", planes=4)
    with pytest.raises(UsageError, match="There is no codec 'up'"):
        BuildOptions(codec="up")
