"""Matrices with fewer planes than others: stored, cut, left out of downloads, and refused."""

from __future__ import annotations

import json

import msgspec
import numpy as np
import pytest
from small_artifact import build, small_spec, write_all

from pliant.artifact import Artifact, ArtifactWriter, verify
from pliant.artifact.fewer_planes import with_fewer_planes
from pliant.artifact.manifest import Manifest
from pliant.bits import BitPlan, BlockBits, codecs
from pliant.errors import ArtifactError, UsageError
from pliant.runtime.plane_product import PlaneProduct
from pliant.subnet import Subnet

FEWER = {"head": 3, "blocks.0.q": 1, "blocks.2.down": 2}
FULL = BlockBits.uniform(4)


@pytest.fixture(scope="module", params=["shift-add", "uniform"])
def artifact(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("fewer") / "x.pliant"
    # As many as all is the same as not said.
    planes = {**FEWER, "embedding": 4}
    return build(path, planes=4, codec=request.param, matrix_planes=planes)


def test_they_come_back_and_cost_what_they_hold(artifact, tmp_path):
    verify(artifact.path)
    assert artifact.manifest.format_version == 3
    assert artifact.manifest.codec.fewer_planes == FEWER
    whole = build(tmp_path / "x.pliant", planes=4, codec=artifact.manifest.codec.name)
    left_out = 0
    for name in (cut.name for cut in Subnet.full(artifact.spec).matrices()):
        count = FEWER.get(name, 4)
        assert len(artifact.planes(name)) == count
        for mine, all_of_it in zip(artifact.planes(name), whole.planes(name), strict=False):
            np.testing.assert_array_equal(mine, all_of_it)
        left_out += (4 - count) * artifact.planes(name)[0].nbytes
    full = artifact.subnet()
    assert full.weight_bytes == whole.subnet().weight_bytes - left_out
    assert artifact.num_bytes < whole.num_bytes


def test_addresses_read_what_is_there_and_plans_must_not_ask_for_more(artifact):
    blocks = (msgspec.structs.replace(FULL, q=1), FULL, msgspec.structs.replace(FULL, down=2))
    assert artifact.subnet().bits == BitPlan(4, 3, blocks)
    assert artifact.subnet("d2-b2").bits == BitPlan(
        4, 3, (msgspec.structs.replace(BlockBits.uniform(2), q=1), BlockBits.uniform(2))
    )
    assert artifact.subnet("b1-e1").bits == BitPlan.uniform(3, 1, 1)
    with pytest.raises(UsageError, match="5 planes asked for"):
        artifact.subnet("b5")
    with pytest.raises(UsageError, match=r"4 planes asked for; .* stores 3 of head"):
        artifact.check(Subnet.full(artifact.spec, 4))
    artifact.check(artifact.subnet())
    codec = codecs[artifact.manifest.codec.name]
    shape = artifact.spec.tensors()["blocks.2.down"]
    product = PlaneProduct(artifact, "blocks.2.down", shape, 2)
    decoded_OI = codec.decode(artifact.encoded("blocks.2.down"), 2)
    np.testing.assert_array_equal(product.rows(np.array([7])), decoded_OI[7:8])
    with pytest.raises(
        UsageError, match=r"3 planes of blocks\.2\.down were asked for; 2 are stored"
    ):
        PlaneProduct(artifact, "blocks.2.down", shape, 3)


def test_a_tied_embedding_with_fewer(tmp_path):
    spec = small_spec(tied_embeddings=True)
    artifact = build(tmp_path / "x.pliant", spec, planes=4, matrix_planes={"embedding": 2})
    assert artifact.subnet() == artifact.subnet("b4")
    assert (artifact.subnet().bits.embedding, artifact.subnet().bits.head) == (2, 2)


def test_downloads_of_fewer_planes(artifact):
    manifest = artifact.manifest
    three, two, one = (with_fewer_planes(manifest, count) for count in (3, 2, 1))
    assert (three.format_version, three.codec.fewer_planes) == (
        3, {"blocks.0.q": 1, "blocks.2.down": 2},
    )  # fmt: skip
    assert two.codec.fewer_planes == {"blocks.0.q": 1}
    assert (one.format_version, one.codec.fewer_planes) == (1, {})
    for few in (three, two, one):
        assert Manifest.from_json(few.to_json()) == few


def test_what_was_written_is_read_back(tmp_path):
    spec = small_spec()
    with ArtifactWriter(tmp_path / "x.pliant", spec, planes=4, matrix_planes=FEWER) as writer:
        write_all(writer)
        assert len(writer.read_matrix("blocks.0.q").planes) == 1
        with pytest.raises(ValueError, match="head has 4 planes, not 3"):
            writer.write_matrix("head", codecs["uniform"].with_planes(4).encode(
                np.zeros((97, 40), np.float32)
            ))  # fmt: skip


@pytest.mark.parametrize(
    ("planes", "message"),
    [
        ({"blocks.3.q": 1}, "'blocks.3.q', which is no matrix"),
        ({"blocks.0.attention_norm": 1}, "which is no matrix"),
        ({"blocks.0.q": 4}, "4 planes, which are not fewer than 4"),
        ({"blocks.0.q": 0}, "is not a manifest"),
        ({"blocks.0.q": 9}, "is not a manifest"),
        ({"blocks.0.q": "1"}, "is not a manifest"),
        ({}, "no matrix with fewer planes"),
        (None, "has matrices with planes of their own, unlike"),
        ("all", "no matrix has so many"),
    ],
)
def test_planes_that_cannot_be(artifact, planes, message):
    manifest = json.loads((artifact.path / "pliant.json").read_bytes())
    if planes == "all":
        planes = {cut.name: 1 for cut in Subnet.full(artifact.spec).matrices()}
    manifest["codec"]["matrix_planes"] = planes
    if planes is None:
        del manifest["codec"]["matrix_planes"]
    with pytest.raises(ArtifactError, match=message):
        Manifest.from_json(json.dumps(manifest).encode())


@pytest.mark.parametrize("version", [1, 2, 4])
def test_they_are_of_one_version(artifact, version):
    manifest = json.loads((artifact.path / "pliant.json").read_bytes())
    manifest["format_version"] = version
    with pytest.raises(Exception, match=f"(?i)version {version}"):
        Manifest.from_json(json.dumps(manifest).encode())


@pytest.mark.parametrize("change", [{"blocks.0.q": 2}, {"blocks.0.k": 1}, {"blocks.2.down": 1}])
def test_files_must_hold_what_the_manifest_says(artifact, tmp_path, change):
    """A tensor that is missing, or one that should not be there, is found when opening."""
    damaged = tmp_path / "damaged.pliant"
    damaged.mkdir()
    for file in artifact.path.iterdir():
        (damaged / file.name).write_bytes(file.read_bytes())
    manifest = json.loads((damaged / "pliant.json").read_bytes())
    manifest["codec"]["matrix_planes"] |= change
    (damaged / "pliant.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match=next(iter(change)).replace(".", r"\.")):
        Artifact.open(damaged)
