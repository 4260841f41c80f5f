"""Opening artifacts: exact views of good ones, a sentence for bad ones."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
from safetensors import safe_open
from small_artifact import CONFIG, build, random_weights, small_spec, some_findings

from pliant.artifact import Artifact, split_address
from pliant.bits import BitPlan, UniformCodec
from pliant.bits.cache import CacheFormat
from pliant.errors import ArtifactError, UnsupportedError, UsageError
from pliant.shape import SubnetShape
from pliant.subnet import Subnet


def edit_manifest(path, change):
    manifest = json.loads((path / "pliant.json").read_bytes())
    change(manifest)
    (path / "pliant.json").write_text(json.dumps(manifest))


def test_tensors_are_what_was_written(pristine):
    artifact = Artifact.open(pristine)
    assert artifact.spec == small_spec()
    for name, weight in random_weights(artifact.spec):
        if weight.ndim == 1:
            np.testing.assert_array_equal(artifact.vector(name), weight)
            continue
        encoded = UniformCodec().encode(weight)
        for stored, plane in zip(artifact.planes(name), encoded.planes, strict=True):
            np.testing.assert_array_equal(stored, plane)
        np.testing.assert_array_equal(artifact.scales(name), encoded.scales)


def test_views_are_read_only_flat_aligned_and_outlive_the_artifact(pristine):
    artifact = Artifact.open(pristine)
    views = [*artifact.planes("embedding"), artifact.scales("head"), artifact.vector("final_norm")]
    copies = [view.copy() for view in views]
    del artifact
    for view, copy in zip(views, copies, strict=True):
        assert view.ndim == 1
        assert not view.flags.writeable
        assert not view.flags.owndata
        assert view.ctypes.data % 64 == 0
        np.testing.assert_array_equal(view, copy)


def test_stock_libraries_read_the_files(pristine):
    transformers = pytest.importorskip("transformers")
    # Not AutoConfig: once `pliant.hf` is imported it has a say in what an artifact is opened as.
    config = transformers.LlamaConfig.from_pretrained(pristine)
    assert config.hidden_size == CONFIG["hidden_size"]
    artifact = Artifact.open(pristine)
    with safe_open(pristine / "plane-3.safetensors", "np") as file:
        plane = file.get_tensor("blocks.1.down")
        np.testing.assert_array_equal(plane.reshape(-1), artifact.planes("blocks.1.down")[3])
    with safe_open(pristine / "scales.safetensors", "np") as file:
        scales = file.get_tensor("blocks.1.down")
        assert scales.dtype == np.float16
        np.testing.assert_array_equal(
            scales.reshape(-1).view(np.uint16), artifact.scales("blocks.1.down")
        )


def test_the_files_are_hardly_larger_than_the_weights(tmp_path):
    spec = small_spec(
        vocab_size=1024, hidden_size=128, num_blocks=5, num_heads=4, head_dim=32, ffn_size=384,
        qkv_bias=False, qk_norm=False, post_norms=False, tied_embeddings=True,
    )  # fmt: skip
    artifact = build(tmp_path / "x.pliant", spec)
    full = Subnet.full(spec)
    ratio = artifact.num_bytes / full.weight_bytes
    print(f"{full.num_parameters} parameters, {ratio:.4f} bytes on disk per byte of weights")
    assert ratio <= 1.06
    on_disk = sum(file.stat().st_size for file in artifact.path.rglob("*") if file.is_file())
    assert artifact.num_bytes == on_disk


# --- Subnets


def test_addresses(pristine):
    artifact = Artifact.open(pristine)
    assert artifact.subnet("") == Subnet.full(artifact.spec, 8)
    assert artifact.subnet("b4").bits == BitPlan.uniform(3, 4)
    coded = artifact.subnet("b4-k3")
    assert coded.bits == BitPlan.uniform(3, 4, cache=CacheFormat(bits=3))
    assert coded.with_cache(16) == artifact.subnet("b4")
    with pytest.raises(UsageError, match="A cache of 5 bits was asked for; use one of"):
        artifact.subnet("k5")
    cut = artifact.subnet("d2-w0.5-b3-e5")
    assert cut.shape == SubnetShape.uniform(artifact.spec, (0, 1), 0.5)
    assert cut.bits == BitPlan.uniform(2, 3, 5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("d4", "cannot be cut to 4 blocks; it knows which to keep for 1, 2, 3"),
        ("d0", "cannot be cut to 0 blocks"),
        ("b9", "9 planes asked for"),
        ("w1.5", "ratio above 0"),
        ("wide", "has no cut 'wide'. No cuts are saved"),
        ("d" + "9" * 5000, "has no cut"),
        ("../x", "has no cut"),
    ],
)
def test_addresses_that_mean_nothing(pristine, text, message):
    with pytest.raises(UsageError, match=message):
        Artifact.open(pristine).subnet(text)


def test_an_artifact_of_few_planes(tmp_path):
    artifact = build(tmp_path / "x.pliant", planes=3)
    assert artifact.num_planes == len(artifact.planes("embedding")) == 3
    assert artifact.subnet("").bits == BitPlan.uniform(3, 3, 3)
    assert artifact.subnet("b2").bits == BitPlan.uniform(3, 2, 3)
    with pytest.raises(UsageError, match=r"4 planes asked for; .* stores 3"):
        artifact.subnet("b4")
    with pytest.raises(UsageError, match="4 planes asked for"):
        artifact.subnet("b3-e4")


def test_depth_paths(pristine):
    artifact = Artifact.open(pristine)
    assert artifact.depth_path() == {3: (0, 1, 2), 2: (0, 1), 1: (0,)}
    assert artifact.depth_path("amoeba") == artifact.depth_path()
    with pytest.raises(UsageError, match="no depth path 'magic'; stored are amoeba"):
        artifact.depth_path("magic")


def test_split_address():
    assert [(str(path), rest) for path, rest in map(split_address, [
        "X.pliant", "X.pliant@", "a/X.pliant@d8-w0.75-b3", "me@home/X.pliant", "a@b/X.pliant@b4",
    ])] == [
        ("X.pliant", ""), ("X.pliant", ""), ("a/X.pliant", "d8-w0.75-b3"),
        ("me@home/X.pliant", ""), ("a@b/X.pliant", "b4"),
    ]  # fmt: skip
    with pytest.raises(UsageError, match="names no artifact"):
        split_address("@b4")


# --- Amending


def test_findings_and_small_files_can_be_added(damaged):
    artifact = Artifact.open(damaged)
    found = some_findings(artifact.spec, tokenizer_files=())
    amended = artifact.amend(found, {"golden.json": b"{}"})
    assert amended.manifest.tokenizer_files == ()
    assert amended.read_file("golden.json") == b"{}"
    assert (
        amended.manifest.files["plane-0.safetensors"]
        == (artifact.manifest.files["plane-0.safetensors"])
    )
    for name in ("plane-0.safetensors", "pliant.json", "../x", "subnets/x"):
        with pytest.raises(UsageError, match="is not a file that can be added"):
            artifact.amend(found, {name: b""})
    with pytest.raises(UsageError, match="has no file 'nothing'"):
        artifact.read_file("nothing")


# --- Damage


def test_missing_and_wrong_paths(tmp_path):
    with pytest.raises(ArtifactError, match="does not exist"):
        Artifact.open(tmp_path / "none.pliant")
    (tmp_path / "none.pliant.partial").mkdir()
    with pytest.raises(ArtifactError, match="unfinished build lies in"):
        Artifact.open(tmp_path / "none.pliant")
    with pytest.raises(ArtifactError, match="is not an artifact"):
        Artifact.open(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArtifactError, match="is not an artifact"):
        Artifact.open(tmp_path / "file")
    with pytest.raises(ArtifactError):
        Artifact.open(tmp_path / ("n" * 5000))
    with pytest.raises(ArtifactError):
        Artifact.open("nul\0byte")


@pytest.mark.parametrize("name", ["vectors", "scales", "plane-0", "plane-7"])
@pytest.mark.parametrize("keep", [0, 1, 7, 8, 100, -1])
def test_truncated_files(damaged, name, keep):
    file = damaged / f"{name}.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:keep])
    with pytest.raises(ArtifactError, match="bytes long; the manifest says"):
        Artifact.open(damaged)
    # The manifest may be of the same hand.
    edit_manifest(damaged, lambda m: m["files"][file.name].update(size=len(content[:keep])))
    with pytest.raises(ArtifactError):
        Artifact.open(damaged)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "plane-2.safetensors"])
def test_missing_grown_and_special_files(damaged, name):
    content = (damaged / name).read_bytes()
    (damaged / name).write_bytes(content + b"x")
    with pytest.raises(ArtifactError, match="bytes long; the manifest says"):
        Artifact.open(damaged)
    (damaged / name).unlink()
    with pytest.raises(ArtifactError, match="No such file"):
        Artifact.open(damaged)
    os.mkfifo(damaged / name)
    with pytest.raises(ArtifactError, match="not a regular file"):
        Artifact.open(damaged)
    (damaged / name).unlink()
    (damaged / name).mkdir()
    with pytest.raises(ArtifactError):
        Artifact.open(damaged)


def test_links(damaged, tmp_path):
    inside, outside = damaged / "copy.json", tmp_path / "outside.json"
    shutil.copy(damaged / "config.json", inside)
    shutil.copy(damaged / "config.json", outside)
    (damaged / "config.json").unlink()
    (damaged / "config.json").symlink_to("copy.json")
    Artifact.open(damaged)
    (damaged / "config.json").unlink()
    (damaged / "config.json").symlink_to(outside)
    with pytest.raises(ArtifactError, match="leads out of the artifact"):
        Artifact.open(damaged)
    (damaged / "config.json").unlink()
    (damaged / "config.json").symlink_to("config.json")
    with pytest.raises(ArtifactError, match="cannot be read"):
        Artifact.open(damaged)


def test_swapped_tensors_of_one_size_are_noticed(damaged):
    file = damaged / "plane-0.safetensors"
    content = file.read_bytes()
    swapped = content.replace(b"blocks.0.q", b"blocks.9.q").replace(b"blocks.1.q", b"blocks.0.q")
    file.write_bytes(swapped.replace(b"blocks.9.q", b"blocks.1.q"))
    with pytest.raises(ArtifactError, match="is not the one the manifest was written for"):
        Artifact.open(damaged)


def set_spec(**fields):
    return lambda manifest: manifest["spec"].update(fields)


def set_rope(**fields):
    return lambda manifest: manifest["spec"]["ropes"][0].update(fields)


def rename_file(name):
    return lambda m: m["files"].update({name: m["files"]["config.json"]})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_spec(num_blocks=10**13, block_windows=[], block_ropes=[]), "num_blocks is 10000"),
        (set_spec(num_blocks=1 << 64), "num_blocks"),
        (set_spec(vocab_size=1 << 30), "vocab_size of the spec"),
        (set_spec(vocab_size=0), "vocab_size is 0"),
        (set_spec(hidden_size=-40), "hidden_size is -40"),
        (set_spec(hidden_size=40.5), "is not a manifest"),
        (set_spec(hidden_size="40"), "is not a manifest"),
        (set_spec(num_heads=1 << 14, num_groups=1, head_dim=4096), "num_heads"),
        (set_spec(num_heads=5), "do not divide"),
        (set_spec(head_dim=7), "head_dim is 7"),
        (set_spec(unknown=1), "unknown field"),
        (set_spec(num_blocks=2), "contradicts itself"),
        (set_spec(hidden_size=41), "asks for"),
        (set_spec(tied_embeddings=True), "does not know"),
        (set_spec(qkv_bias=False), "does not know"),
        (set_spec(o_bias=True), "lacks the tensor"),
        (set_spec(norm_epsilon=-1.0), "norm_epsilon"),
        (set_spec(attention_scale=-1.0), "attention_scale"),
        (set_spec(max_context=1 << 30), "max_context"),
        (set_spec(block_windows=[0, 1 << 40, 0]), "block_windows"),
        (set_spec(block_windows=[-1, 0, 0]), "block_windows"),
        (set_spec(block_ropes=[3, 0, 0]), "block_ropes"),
        (set_spec(activation="exec"), "Invalid enum value"),
        (set_spec(ropes=[]), "contradicts itself"),
        (set_rope(base=1e300), "contradicts itself"),
        (set_rope(base=0.0), "contradicts itself"),
        (set_rope(kind="yarn", factor=4.0), "contradicts itself"),
        (set_rope(kind="llama3", low_frequency_factor=1.0, high_frequency_factor=1.0),
         "contradicts itself"),
        (set_rope(kind="yarn", attention_factor=1e30, original_context=8), "not finite"),
        (set_rope(kind="dynamic", factor=1e37, original_context=1),
         "cannot be computed|not finite"),
        (lambda m: m.update(format_version="one"), "is not a manifest"),
        (lambda m: m.pop("files"), "is not a manifest"),
        (lambda m: m.update(surprise=1), "unknown field"),
        (lambda m: m["files"].pop("plane-4.safetensors"), "does not list 'plane-4.safetensors'"),
        (lambda m: m["files"].pop("config.json"), "does not list 'config.json'"),
        (lambda m: m["files"].pop("tokenizer.json"), "does not list 'tokenizer.json'"),
        (lambda m: m["files"]["config.json"].update(size=-1), "is not a manifest"),
        (lambda m: m["files"]["config.json"].update(sha256="x"), "is not a manifest"),
        (lambda m: m["files"]["scales.safetensors"].pop("table_sha256"), "the one the manifest"),
        (rename_file("../outside.json"), "is not a name"),
        (rename_file("/etc/passwd"), "is not a name"),
        (rename_file("a/b.json"), "is not a name"),
        (rename_file("pliant.json"), "is not a name"),
        (rename_file(".hidden"), "is not a name"),
        (lambda m: m.update(tokenizer_files=["../../etc/passwd"]), "does not list"),
        (lambda m: m["codec"].update(planes=9), "is not a manifest"),
        (lambda m: m["codec"].update(planes=7), None),
        (lambda m: m["tokens"].update(eos=[97]), "special token 97"),
        (lambda m: m["tokens"].update(bos=-1), "special token -1"),
        (lambda m: m["alignment"].update(neurons=0), "is not a manifest"),
        (lambda m: m["orders"]["groups"].pop(), "contradicts itself"),
        (lambda m: m["orders"]["neurons"][0].append(0), "contradicts itself"),
        (lambda m: m.update(default_depth_method="none"), "has no depth path"),
        (lambda m: m["depth_paths"]["amoeba"]["choices"].append({"blocks": [9], "loss": 1.0}),
         "not ascending blocks"),
        (lambda m: m["depth_paths"]["amoeba"]["choices"].append({"blocks": [1, 0], "loss": 1.0}),
         "not ascending blocks"),
    ],
)  # fmt: skip
def test_attacks_on_the_manifest_fail(damaged, change, message):
    edit_manifest(damaged, change)
    if message is None:
        # Fewer planes than lie in the folder: what is not listed is not read.
        assert Artifact.open(damaged).num_planes == 7
        return
    with pytest.raises(ArtifactError, match=message):
        Artifact.open(damaged)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(format_version=4, surprise=1), "format version 4; this pliant reads 1"),
        (lambda m: m["codec"].update(name="fractal"), "The codec is 'fractal'"),
        (lambda m: m["codec"].update(group_columns=128), "groups of 128 columns"),
    ],
)
def test_newer_artifacts_are_named_as_such(damaged, change, message):
    edit_manifest(damaged, change)
    with pytest.raises(UnsupportedError, match=message):
        Artifact.open(damaged)


@pytest.mark.parametrize("text", [b"", b"{}", b"[1]", b"\xff", b"[" * 100_000, b'{"a":' * 50_000])
def test_manifests_that_are_none(damaged, text):
    (damaged / "pliant.json").write_bytes(text)
    with pytest.raises(ArtifactError, match="is not a manifest"):
        Artifact.open(damaged)
