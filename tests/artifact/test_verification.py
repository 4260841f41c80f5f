"""`verify` reads everything and finds what opening does not."""

from __future__ import annotations

import hashlib
import json
import shutil

import numpy as np
import pytest
from small_artifact import build

from pliant.artifact import Artifact, verify
from pliant.artifact.manifest import Manifest
from pliant.errors import ArtifactError, UnsupportedError, VerificationError


@pytest.fixture
def damaged(pristine, tmp_path):
    return shutil.copytree(pristine, tmp_path / "damaged.pliant")


def change_tensor(path, file, name, change, rehash=True):
    """Edit a tensor's bytes in place, and the manifest with them as an attacker would."""
    artifact = Artifact.open(path)
    views = {"scales": artifact.scales, "vectors": artifact.vector}
    view = views[file](name) if file in views else artifact.planes(name)[int(file[-1])]
    target = path / f"{file}.safetensors"
    content = bytearray(target.read_bytes())
    begin = content.index(view.tobytes())
    values = view.copy()
    change(values)
    content[begin : begin + values.nbytes] = values.tobytes()
    target.write_bytes(content)
    if rehash:
        manifest = json.loads((path / "pliant.json").read_bytes())
        manifest["files"][target.name]["sha256"] = hashlib.sha256(content).hexdigest()
        (path / "pliant.json").write_text(json.dumps(manifest))


def test_a_good_artifact(pristine):
    stages = []
    report = verify(pristine, progress=lambda *now: stages.append(now))
    manifest = Artifact.open(pristine).manifest
    assert report.files == len(manifest.files) == 12
    assert report.num_bytes == sum(record.size for record in manifest.files.values())
    assert report.matrices == 23
    assert {stage for stage, _, _ in stages} == {"hashes", "values"}
    assert stages[-1] == ("values", 23, 23)


@pytest.mark.parametrize("planes", [1, 5])
def test_artifacts_of_few_planes(tmp_path, planes):
    verify(build(tmp_path / "x.pliant", planes=planes).path)


def test_one_flipped_bit_anywhere(damaged):
    def flip(values):
        values.view(np.uint8)[5] ^= 1

    for file, name in [("plane-6", "head"), ("scales", "embedding"), ("vectors", "final_norm")]:
        change_tensor(damaged, file, name, flip, rehash=False)
        assert verify(damaged, deep=False)
        with pytest.raises(VerificationError, match=f"{file}.safetensors has SHA-256"):
            verify(damaged)
        change_tensor(damaged, file, name, flip, rehash=False)
    verify(damaged)
    (damaged / "tokenizer.json").write_text("[]")
    with pytest.raises(VerificationError, match=r"tokenizer\.json has SHA-256"):
        verify(damaged)


@pytest.mark.parametrize("bits", [0x7E00, 0x7C00, 0xFC00, 0xBC00, 0x8000])
def test_scales_that_are_nan_infinite_or_negative(damaged, bits):
    change_tensor(damaged, "scales", "blocks.1.up", lambda values: values.put(3, bits))
    with pytest.raises(VerificationError, match=r"blocks\.1\.up .* NaN, infinite or negative"):
        verify(damaged)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_vectors_that_are_not_finite(damaged, value):
    change_tensor(damaged, "vectors", "blocks.2.q.bias", lambda values: values.put(0, value))
    with pytest.raises(VerificationError, match=r"blocks\.2\.q\.bias .* NaN or infinite"):
        verify(damaged)


@pytest.mark.parametrize(
    ("file", "place", "value"),
    [
        # head is 97 x 40: one row in the last of 4 tiles, 8 columns in the last of 2 chunks.
        ("plane-2", -1, 1),
        ("plane-2", 3 * 256 + 4, 1),
        ("plane-2", 128, 4),
        ("scales", -1, 1),
    ],
)
def test_padding_that_is_not_zero(damaged, file, place, value):
    def change(values):
        values[place] |= value

    change_tensor(damaged, file, "head", change)
    with pytest.raises(VerificationError, match=r"head .* padding that is not zero"):
        verify(damaged)


def test_bits_that_are_not_padding_may_be_anything(damaged):
    def change(values):
        values[128] ^= 3

    change_tensor(damaged, "plane-2", "head", change)
    verify(damaged)


def test_structure_and_saved_cuts(damaged, tmp_path):
    Artifact.open(damaged).save_subnet("phone", Artifact.open(damaged).subnet("d1"))
    verify(damaged, deep=False)
    (damaged / "subnets" / "phone.json").write_text("{}")
    with pytest.raises(VerificationError, match="saved cut 'phone'"):
        verify(damaged, deep=False)
    shutil.rmtree(damaged / "subnets")
    (damaged / "plane-1.safetensors").write_bytes(b"")
    with pytest.raises(VerificationError, match="bytes long; the manifest says"):
        verify(damaged)
    with pytest.raises(ArtifactError, match="does not exist"):
        verify(tmp_path / "none")


def test_shift_add_artifacts_and_scales_that_are_none(tmp_path):
    path = build(tmp_path / "x.pliant", planes=3, codec="shift-add").path
    verify(path)

    def four_powers(scales):
        scales[0] = np.float16(43).view(np.uint16)

    change_tensor(path, "scales", "head", four_powers)
    with pytest.raises(VerificationError, match="no sum of 3 powers of two"):
        verify(path)
    # Names of codecs to come are told, and more planes than this one has are refused.
    manifest = json.loads((path / "pliant.json").read_bytes())
    manifest["codec"]["name"] = "shift-add-2"
    with pytest.raises(UnsupportedError, match="shift-add-2"):
        Manifest.from_json(json.dumps(manifest).encode())
    manifest["codec"] |= {"name": "shift-add", "planes": 5}
    for plane in (3, 4):
        name = f"plane-{plane}.safetensors"
        manifest["files"][name] = manifest["files"]["plane-0.safetensors"]
    with pytest.raises(ArtifactError, match="5 planes; the codec shift-add has at most 4"):
        Manifest.from_json(json.dumps(manifest).encode())
