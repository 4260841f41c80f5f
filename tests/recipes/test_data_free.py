"""A build without text: nearest codes, widths by weights, nothing claimed that was not measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import pliant
from pliant.artifact import Artifact, ArtifactWriter, verify
from pliant.bits import codecs
from pliant.calibrate import find_width_orders
from pliant.errors import DataError, OutOfSpaceError, UnsupportedError
from pliant.models import Checkpoint, Supernet
from pliant.recipes.data_free import build_data_free
from pliant.recipes.fit import offer


def all_files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_weights_are_nearest_and_in_order_of_their_columns(
    random_checkpoint: Path, tmp_path: Path
) -> None:
    receipt = build_data_free(random_checkpoint, tmp_path / "x.pliant", planes=5)
    assert receipt.dense_loss is None and receipt.receipts == ()
    artifact = Artifact.open(tmp_path / "x.pliant")
    verify(artifact.path)
    assert artifact.num_planes == 5
    dense = Supernet.from_checkpoint(Checkpoint.open(random_checkpoint))
    orders = find_width_orders(dense, None, "magnitude")
    assert artifact.manifest.orders == orders
    dense.permute(orders)
    norms = dense.weights["blocks.0.down"].square().sum(0)
    assert (norms.diff() <= 0).all()
    for name, weight in dense.weights.items():
        if weight.ndim == 2:
            expected = codecs["uniform"].with_planes(5).encode(weight.numpy())
            for plane, wanted in zip(artifact.encoded(name).planes, expected.planes, strict=True):
                np.testing.assert_array_equal(plane, wanted)
    with pytest.raises(DataError, match="looks at calibration text"):
        find_width_orders(dense, None, "flap")


def test_it_runs_and_is_cut_but_fit_refuses(random_checkpoint: Path, tmp_path: Path) -> None:
    build_data_free(random_checkpoint, tmp_path / "x.pliant")
    with pliant.open(tmp_path / "x.pliant") as model:
        with model.engine("w0.5-b3") as engine:
            assert isinstance(engine.tokenizer.encode("a"), list)
        with pytest.raises(UnsupportedError, match="without sensitivities"):
            offer(model)


def test_stopped_it_goes_on_to_the_same_bytes(
    random_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, stopped = tmp_path / "whole.pliant", tmp_path / "stopped.pliant"
    assert not build_data_free(random_checkpoint, whole).was_resumed
    write, names = ArtifactWriter.write_matrix, []

    def stop_at_nine(self: ArtifactWriter, name: str, encoded: object) -> None:
        names.append(name)
        if len(names) == 9:
            raise KeyboardInterrupt
        write(self, name, encoded)  # type: ignore[arg-type]

    monkeypatch.setattr(ArtifactWriter, "write_matrix", stop_at_nine)
    with pytest.raises(KeyboardInterrupt):
        build_data_free(random_checkpoint, stopped)
    assert build_data_free(random_checkpoint, stopped).was_resumed
    assert all_files(whole) == all_files(stopped)
    # The units that were whole when it stopped, embedding and first block, are not done again.
    assert names.count("embedding") == 1


def test_too_little_memory_is_refused_before_anything_is_read(
    random_checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(OutOfSpaceError, match=r"needs .* of memory and 10.0 MB were given"):
        build_data_free(random_checkpoint, tmp_path / "x.pliant", max_ram=10_000_000)
    assert list(tmp_path.iterdir()) == []
