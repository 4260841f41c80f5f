"""Named subnets of an artifact: saved, read back, refused."""

from __future__ import annotations

import json

import pytest
from small_artifact import build, small_spec

from pliant.artifact import Artifact
from pliant.bits import BitPlan
from pliant.bits.cache import CacheFormat
from pliant.errors import ArtifactError, UsageError
from pliant.shape import SubnetShape
from pliant.subnet import Subnet


def test_saved_subnets(damaged):
    artifact = Artifact.open(damaged)
    shape = SubnetShape((0, 2), (1, 2), (64, 100))
    subnet = Subnet(artifact.spec, shape, BitPlan.uniform(2, 5))
    artifact.save_subnet("phone", subnet)
    artifact.save_subnet("phone", subnet)
    artifact.save_subnet("watch", artifact.subnet("d1-b2"))
    assert artifact.subnet("phone") == subnet
    assert Artifact.open(damaged).subnet_names() == ["phone", "watch"]
    with pytest.raises(UsageError, match="Saved cuts are phone, watch"):
        artifact.subnet("tablet")
    assert sorted(file.name for file in (damaged / "subnets").iterdir()) == [
        "phone.json", "watch.json",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["", "b3", "d2-w0.5", "a/b", "../up", ".hidden", "x" * 65, "a b"])
def test_names_that_cannot_be_saved(damaged, name):
    artifact = Artifact.open(damaged)
    with pytest.raises(UsageError, match="cannot name a cut"):
        artifact.save_subnet(name, artifact.subnet())


def test_subnets_of_other_models_or_more_planes_are_refused(tmp_path, pristine):
    artifact = Artifact.open(pristine)
    with pytest.raises(UsageError, match="another model"):
        artifact.save_subnet("x", Subnet.full(small_spec(vocab_size=98)))
    few = build(tmp_path / "x.pliant", planes=2)
    with pytest.raises(UsageError, match="8 planes asked for"):
        few.save_subnet("x", Subnet.full(few.spec, 8))


@pytest.mark.parametrize("text", [b"", b"{}", b"[" * 100_000, b"\xff", b"huge"])
def test_damaged_saved_subnets(damaged, text):
    artifact = Artifact.open(damaged)
    if text == b"huge":
        subnet = json.loads(artifact.subnet().to_json())
        subnet["spec"] |= {"num_blocks": 10**13, "block_windows": [], "block_ropes": []}
        text = json.dumps(subnet).encode()
    (damaged / "subnets").mkdir()
    (damaged / "subnets" / "x.json").write_bytes(text)
    with pytest.raises(ArtifactError, match=r"saved cut 'x' .* is damaged"):
        artifact.subnet("x")


def test_nothing_is_written_through_links(damaged, tmp_path):
    artifact = Artifact.open(damaged)
    (tmp_path / "outside").mkdir()
    (damaged / "subnets").symlink_to(tmp_path / "outside")
    with pytest.raises(ArtifactError, match="is a link"):
        artifact.save_subnet("x", artifact.subnet())
    (damaged / "subnets").unlink()
    (damaged / "subnets").mkdir()
    (tmp_path / "target").write_text("precious")
    (damaged / "subnets" / ".x.json.new").symlink_to(tmp_path / "target")
    artifact.save_subnet("x", artifact.subnet())
    assert (tmp_path / "target").read_text() == "precious"


def test_the_cache_is_saved_and_may_be_missing(damaged):
    artifact = Artifact.open(damaged)
    path = artifact.save_subnet("phone", artifact.subnet("b3").with_cache(2, 128))
    assert artifact.subnet("phone").bits.cache == CacheFormat(bits=2, window=128)
    saved = json.loads(path.read_text())
    for cache, expected in (({"bits": 4}, "int4 behind the last 64 tokens"), (None, "float16")):
        saved["bits"].pop("cache", None)
        saved["bits"] |= {"cache": cache} if cache else {}
        path.write_text(json.dumps(saved))
        assert str(artifact.subnet("phone").bits.cache) == expected
    saved["bits"]["cache"] = {"bits": 4, "window": 10**12 + 1}
    path.write_text(json.dumps(saved))
    with pytest.raises(ArtifactError, match=r"is damaged: .*A window of"):
        artifact.subnet("phone")
