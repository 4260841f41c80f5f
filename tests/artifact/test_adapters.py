"""Adapters beside the planes: written, read, gated, verified; attacks on them fail."""

from __future__ import annotations

import hashlib
import json
import shutil

import numpy as np
import pytest
from small_artifact import random_adapters, small_spec, some_findings, write_adapters, write_all

from pliant.adapters import AdapterSpec, gates, shape_code
from pliant.artifact import Artifact, ArtifactWriter, verify
from pliant.artifact.manifest import ADAPTERS_VERSION
from pliant.errors import ArtifactError, CheckpointError, UsageError, VerificationError
from pliant.shape import SubnetShape

ADAPTERS = AdapterSpec(rank=2, experts=3, top_k=2, scale=4.0)
CUT = SubnetShape((0, 2), (1, 2), (33, 100))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path, spec = tmp_path_factory.mktemp("adapted") / "a.pliant", small_spec()
    with ArtifactWriter(path, spec, adapters=ADAPTERS) as writer:
        write_all(writer)
        write_adapters(writer)
        return writer.finish(some_findings(spec)).path


@pytest.fixture
def damaged(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "damaged.pliant")


def test_they_come_back_as_fp16_and_the_router_as_it_was(whole):
    verify(whole)
    artifact = Artifact.open(whole)
    assert artifact.adapters == ADAPTERS
    assert artifact.manifest.format_version == ADAPTERS_VERSION
    for name, tensor in random_adapters(artifact.spec, ADAPTERS).items():
        stored = tensor if name.startswith("router") else tensor.astype(np.float16)
        np.testing.assert_array_equal(artifact.adapter(name), stored)


def test_a_shape_gets_its_gates_and_prefixes_of_its_factors(whole):
    artifact = Artifact.open(whole)
    tensors = random_adapters(artifact.spec, ADAPTERS)
    expected = gates(ADAPTERS, tensors, shape_code(artifact.spec, CUT))
    assert artifact.gates(CUT) == expected
    a_RI, b_OR = artifact.low_rank(CUT)("blocks.2.down", 40, 33)
    assert (a_RI.shape, b_OR.shape) == ((2, 33), (40, 2))
    half = {name: tensor.astype(np.float16).astype(np.float32) for name, tensor in tensors.items()}
    a, b = half["blocks.2.down.a"], half["blocks.2.down.b"]
    np.testing.assert_allclose(a_RI, sum(g * a[e, :, :33] for e, g in expected.items()), rtol=1e-6)
    np.testing.assert_allclose(b_OR, sum(4 * g * b[e] for e, g in expected.items()), rtol=1e-6)


def test_without_adapters_there_are_none_and_the_version_stays(pristine):
    artifact = Artifact.open(pristine)
    assert artifact.adapters is None
    assert artifact.low_rank(CUT) is None
    assert artifact.gates(CUT) == {}
    assert artifact.manifest.format_version == 1
    assert b"adapters" not in (pristine / "pliant.json").read_bytes()
    with pytest.raises(UsageError, match="no adapters"):
        artifact.adapter("blocks.0.q.a")


def test_an_interrupted_writer_goes_on_with_the_same_bytes(whole, tmp_path):
    path, spec = tmp_path / "b.pliant", small_spec()
    with ArtifactWriter(path, spec, adapters=ADAPTERS) as writer:
        write_all(writer)
        for name, tensor in list(random_adapters(spec, ADAPTERS).items())[:20]:
            writer.write_adapter(name, tensor)
    with ArtifactWriter(path, spec, adapters=ADAPTERS) as writer:
        assert writer.is_resumed
        assert writer.is_done("blocks.0.q.a")
        assert not writer.is_done("blocks.2.q.a")
        with pytest.raises(ArtifactError, match="was not written"):
            writer.preview(some_findings(spec))
        write_all(writer)
        write_adapters(writer)
        writer.finish(some_findings(spec))
    for name in ("adapters.safetensors", "plane-0.safetensors", "pliant.json"):
        assert (path / name).read_bytes() == (whole / name).read_bytes(), name
    other = AdapterSpec(rank=3)
    with (
        ArtifactWriter(tmp_path / "c.pliant", spec, adapters=other),
        pytest.raises(UsageError, match="Another process"),
    ):
        ArtifactWriter(tmp_path / "c.pliant", spec)


def test_amending_keeps_them(damaged):
    artifact = Artifact.open(damaged)
    amended = artifact.amend(some_findings(artifact.spec), {"golden.json": b"[]"})
    assert amended.adapters == ADAPTERS


def test_a_writer_refuses_what_does_not_fit(tmp_path):
    spec = small_spec()
    with ArtifactWriter(tmp_path / "x.pliant", spec, adapters=ADAPTERS) as writer:
        with pytest.raises(ValueError, match="has shape"):
            writer.write_adapter("blocks.0.q.a", np.zeros((3, 2, 7), np.float32))
        with pytest.raises(ValueError, match="the spec has None"):
            writer.write_adapter("blocks.0.q", np.zeros((3, 2, 7), np.float32))
        with pytest.raises(CheckpointError, match="fp16 does not"):
            writer.write_adapter("blocks.0.q.a", np.full((3, 2, 40), 1e6, np.float32))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(format_version=1), "adapters, unlike this manifest"),
        (lambda m: m.pop("adapters"), "has adapters, unlike|unlike this manifest"),
        (lambda m: m["adapters"].update(rank=3), r"in adapters.safetensors is F16"),
        (lambda m: m["adapters"].update(rank=1 << 40), "not a manifest"),
        (lambda m: m["adapters"].update(experts=1, top_k=1), "the spec does not know"),
        (lambda m: m["adapters"].update(top_k=4), "contradicts itself|not a manifest"),
        (lambda m: m["adapters"].update(scale=float("1e300")), "not a manifest"),
        (lambda m: m["adapters"].update(surprise=1), "not a manifest"),
        (lambda m: m["files"].pop("adapters.safetensors"), "does not list 'adapters"),
    ],
)
def test_manifests_that_lie(damaged, change, message):
    path = damaged / "pliant.json"
    manifest = json.loads(path.read_bytes())
    change(manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match=message):
        Artifact.open(damaged)


def test_values_that_are_not_numbers_are_found(damaged):
    artifact = Artifact.open(damaged)
    target = damaged / "adapters.safetensors"
    content = bytearray(target.read_bytes())
    view = artifact.adapter("blocks.1.up.b")
    begin = content.index(view.tobytes())
    content[begin : begin + 2] = np.float16("nan").tobytes()
    target.write_bytes(content)
    with pytest.raises(VerificationError, match="SHA-256"):
        verify(damaged)
    change_hash(damaged, target)
    with pytest.raises(VerificationError, match=r"blocks\.1\.up\.b .* NaN or infinite"):
        verify(damaged)


def test_a_router_without_numbers_is_refused_by_name(damaged):
    artifact = Artifact.open(damaged)
    target = damaged / "adapters.safetensors"
    content = bytearray(target.read_bytes())
    begin = content.index(artifact.adapter("router.output.bias").tobytes())
    content[begin : begin + 4] = np.float32("nan").tobytes()
    target.write_bytes(content)
    with pytest.raises(ArtifactError, match="scores that are no numbers"):
        Artifact.open(damaged).gates(CUT)


def change_hash(path, target):
    manifest = json.loads((path / "pliant.json").read_bytes())
    digest = hashlib.sha256(target.read_bytes()).hexdigest()
    manifest["files"][target.name]["sha256"] = digest
    (path / "pliant.json").write_text(json.dumps(manifest))
