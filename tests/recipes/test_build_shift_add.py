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
from pliant.runtime import Chunk, Engine
from pliant.runtime.plane_product import PlaneProduct

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


def test_what_shift_add_refuses() -> None:
    with pytest.raises(UsageError, match="shift-add makes 1 to 4"):
        BuildOptions(codec="shift-add")
    with pytest.raises(UnsupportedError, match="rotation of inputs and outputs that is not folded"):
        BuildOptions(codec="shift-add-acc", planes=4)
    with pytest.raises(UsageError, match="There is no codec 'up'"):
        BuildOptions(codec="up")
