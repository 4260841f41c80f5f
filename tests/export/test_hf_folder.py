"""Folders for `transformers`: the same function in its own classes, or a refusal with a reason."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from pliant.artifact import Artifact
from pliant.errors import ArtifactError, OutOfSpaceError, UnsupportedError, UsageError
from pliant.export import export_hf, plan_hf, target
from pliant.shape import SubnetShape
from pliant.subnet import Subnet

transformers = pytest.importorskip("transformers")
SEEDED = np.random.default_rng(0).integers(3, 300, 48)
#: fp32 sums in another order, a few blocks deep; logits have a deviation of 1.
TOLERANCE = 1e-4


def halved(artifact: Any) -> Subnet:
    """A cut that keeps three blocks: one whole, one without attention, one without MLP."""
    whole = artifact.subnet("d3-b4")
    shape = SubnetShape(whole.shape.blocks, (2, 0, 1), (64, 128, 0))
    return Subnet(whole.spec, shape, whole.bits)


def logits_of(folder: Path) -> Any:
    torch.set_num_threads(1)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return model(torch.from_numpy(SEEDED)[None]).logits[0].numpy()


@pytest.mark.parametrize(
    ("name", "address"),
    [(name, "d3-w0.5-b3") for name in ("llama-3", "llama-biases", "mistral-window", "qwen2",
                                       "qwen3", "gemma2", "gemma3", "smollm3")]
    + [("llama", ""), ("gemma3", "b8")],
)  # fmt: skip
def test_stock_classes_compute_our_logits(name, address, tiny_artifact, exact_logits, tmp_path):
    artifact = tiny_artifact(name)
    plan = plan_hf(artifact, address, "float32")
    record = export_hf(plan, address, tmp_path / "out")
    ours = exact_logits(artifact, artifact.subnet(address))
    np.testing.assert_allclose(logits_of(tmp_path / "out"), ours, rtol=0, atol=TOLERANCE)
    assert record.weight_bytes == plan.weight_bytes <= plan.num_bytes
    written = sum(path.stat().st_size for path in (tmp_path / "out").iterdir())
    assert written <= plan.num_bytes


@pytest.mark.parametrize(("dtype", "unit"), [("float16", 2.0**-11), ("bfloat16", 2.0**-8)])
def test_half_precision_is_rounded_to_nearest(dtype, unit, tiny_artifact, tmp_path):
    from safetensors.torch import load_file

    artifact = tiny_artifact("llama")
    plan = plan_hf(artifact, "d2", dtype)
    export_hf(plan, "d2", tmp_path / "out")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    expected = {name: torch.from_numpy(np.array(value)) for name, value in plan.weights.tensors()}
    found = stored["model.layers.1.mlp.down_proj.weight"]
    assert found.dtype == getattr(torch, dtype)
    assert torch.equal(found, expected["blocks.1.down"].to(found.dtype))
    difference = (found.float() - expected["blocks.1.down"]).abs()
    # Below its normal numbers float16 has a step of 2^-24.
    assert bool((difference <= unit * expected["blocks.1.down"].abs() + 2.0**-25).all())


def test_shards_have_an_index_and_hold_everything(tiny_artifact, exact_logits, tmp_path):
    artifact = tiny_artifact("qwen2")
    export_hf(plan_hf(artifact, "d2", "float32", shard_bytes=60_000), "d2", tmp_path / "out")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_bytes())
    files = set(index["weight_map"].values())
    assert (
        len(files) > 2 and {path.name for path in (tmp_path / "out").glob("*.safetensors")} == files
    )
    ours = exact_logits(artifact, artifact.subnet("d2"))
    np.testing.assert_allclose(logits_of(tmp_path / "out"), ours, rtol=0, atol=TOLERANCE)


def with_widths(artifact: Any, groups: tuple[int, ...], neurons: tuple[int, ...]) -> Subnet:
    subnet = artifact.subnet(f"d{len(groups)}-b4")
    shape = SubnetShape(subnet.shape.blocks, groups, neurons)
    return msgspec.structs.replace(subnet, shape=shape)


def test_widths_of_their_own_are_filled_up_or_refused(exact_logits, tmp_path):
    from interop_models import quick_artifact, tiny_checkpoint

    artifact = quick_artifact(
        tiny_checkpoint("llama-biases", tmp_path / "a"), tmp_path / "a.pliant"
    )
    subnet = with_widths(artifact, (1, 2), (128, 64))
    artifact.save_subnet("odd", subnet)
    with pytest.raises(UnsupportedError, match=r"2 groups and 128 neurons.*--pad"):
        plan_hf(artifact, "odd", pad=False)
    plan = plan_hf(artifact, "odd", "float32")
    assert "weights of zero" in plan.notes[0] and plan.padding > 0
    export_hf(plan, "odd", tmp_path / "out")
    ours = exact_logits(artifact, subnet)
    np.testing.assert_allclose(logits_of(tmp_path / "out"), ours, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", ["llama-biases", "qwen3", "gemma2", "smollm3"])
def test_halves_of_blocks_are_filled_up_or_refused(name, tiny_artifact, exact_logits, tmp_path):
    """Biases, norms behind and norms within a half that is left out must all add nothing."""
    from interop_models import quick_artifact, tiny_checkpoint

    artifact = quick_artifact(tiny_checkpoint(name, tmp_path / "a"), tmp_path / "a.pliant")
    subnet = halved(artifact)
    artifact.save_subnet("halved", subnet)
    with pytest.raises(UnsupportedError, match=r"halves of blocks.*nearest.*--pad"):
        plan_hf(artifact, "halved", pad=False)
    export_hf(plan_hf(artifact, "halved", "float32"), "halved", tmp_path / "out")
    ours = exact_logits(artifact, subnet)
    np.testing.assert_allclose(logits_of(tmp_path / "out"), ours, rtol=0, atol=TOLERANCE)


def test_a_model_of_mlps_alone_has_an_attention_of_zeros(tiny_artifact, exact_logits, tmp_path):
    from interop_models import quick_artifact, tiny_checkpoint

    artifact = quick_artifact(tiny_checkpoint("llama", tmp_path / "a"), tmp_path / "a.pliant")
    shapes = {"attentions": ((2, 1), (0, 0)), "mlps": ((0, 0), (128, 64))}
    for name, (groups, neurons) in shapes.items():
        whole = artifact.subnet("d2-b4")
        shape = SubnetShape(whole.shape.blocks, groups, neurons)
        artifact.save_subnet(name, Subnet(whole.spec, shape, whole.bits))
        export_hf(plan_hf(artifact, name, "float32"), name, tmp_path / name)
        ours = exact_logits(artifact, artifact.subnet(name))
        np.testing.assert_allclose(logits_of(tmp_path / name), ours, rtol=0, atol=TOLERANCE)


def test_per_layer_configs_are_not_yet_what_these_classes_build_by():
    """Where this fails, transformers has learned it: then export widths as they are."""
    shape = {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16,
    }  # fmt: skip
    if not hasattr(transformers.LlamaConfig(**shape), "is_heterogeneous"):
        pytest.skip("this version of transformers has no per_layer_config")
    for config in (transformers.LlamaConfig, transformers.Qwen3Config, transformers.Gemma2Config):
        mixed = config(**shape, per_layer_config={1: {"intermediate_size": 32}})
        with pytest.raises(Exception, match="per-layer attribute"):
            transformers.AutoModelForCausalLM.from_config(mixed)


def test_heads_that_do_not_divide_the_hidden_size(tiny_artifact, exact_logits, tmp_path):
    from interop_models import quick_artifact, tiny_checkpoint

    changes = {"num_attention_heads": 4, "num_key_value_heads": 4}
    checkpoint = tiny_checkpoint("llama", tmp_path / "a", **changes)
    artifact = quick_artifact(checkpoint, tmp_path / "a.pliant")
    with pytest.raises(UnsupportedError, match=r"3 heads.*hidden size of 64.*4 groups"):
        plan_hf(artifact, "d2-w0.75", pad=False)
    export_hf(plan_hf(artifact, "d2-w0.75", "float32"), "d2-w0.75", tmp_path / "out")
    ours = exact_logits(artifact, artifact.subnet("d2-w0.75"))
    np.testing.assert_allclose(logits_of(tmp_path / "out"), ours, rtol=0, atol=TOLERANCE)


def test_embedding_and_head_of_different_planes_are_no_longer_tied(
    tiny_artifact, exact_logits, tmp_path
):
    from interop_models import quick_artifact, tiny_checkpoint

    artifact = quick_artifact(tiny_checkpoint("qwen2", tmp_path / "a"), tmp_path / "a.pliant")
    subnet = artifact.subnet("d2")
    bits = msgspec.structs.replace(subnet.bits, embedding=4, head=8)
    subnet = msgspec.structs.replace(subnet, bits=bits)
    artifact.save_subnet("mixed", subnet)
    export_hf(plan_hf(artifact, "mixed", "float32"), "mixed", tmp_path / "out")
    ours = exact_logits(artifact, subnet)
    np.testing.assert_allclose(logits_of(tmp_path / "out"), ours, rtol=0, atol=TOLERANCE)


def test_the_folder_says_where_it_comes_from_and_reads_texts_alike(tiny_artifact, tmp_path):
    from pliant.runtime import Tokenizer

    artifact = tiny_artifact("llama")
    record = export_hf(plan_hf(artifact, "d3-b4"), "d3-b4", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "`d3-b4`" in card and artifact.manifest.source.fingerprint[:16] in card
    assert json.loads((tmp_path / "out" / target.RECORD_FILE).read_bytes())["address"] == "d3-b4"
    assert record.subnet_bytes == artifact.subnet("d3-b4").weight_bytes
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    ours = Tokenizer.load(artifact.path)
    text = "Once upon a time, 12 foxes — naïve ones!\n\n"
    assert theirs(text).input_ids == ours.encode(text)
    conversation = [{"role": "user", "content": "hello"}]
    chat = theirs.apply_chat_template(conversation, add_generation_prompt=True, return_dict=False)
    assert list(chat) == ours.apply_chat_template(conversation)


@pytest.mark.parametrize("content", [b"", b"\xff", b"[1]", b"[" * 99999], ids=len)
def test_damaged_side_files_are_named(content, tiny_artifact, tmp_path):
    """Only sizes of them are known when an artifact is opened."""
    stored = tiny_artifact("llama").path
    for name in ("config.json", "tokenizer_config.json"):
        copy = shutil.copytree(stored, tmp_path / name)
        artifact = Artifact.open(copy)
        (copy / name).write_bytes(content)
        with pytest.raises(ArtifactError, match=name.replace(".", r"\.")):
            export_hf(plan_hf(artifact, "d1-b2"), "d1-b2", tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_places_that_may_not_be_written(tiny_artifact, tmp_path, monkeypatch):
    artifact = tiny_artifact("llama")
    plan = plan_hf(artifact, "d1")
    out = tmp_path / "out"
    export_hf(plan, "d1", out)
    with pytest.raises(UsageError, match="--force"):
        export_hf(plan, "d1", out)
    export_hf(plan, "d1", out, force=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(UsageError, match="not written by an export"):
        export_hf(plan, "d1", tmp_path / "mine", force=True)
    (tmp_path / "link").symlink_to(out)
    with pytest.raises(UsageError, match="is a link"):
        export_hf(plan, "d1", tmp_path / "link", force=True)
    monkeypatch.setattr(target, "free_bytes", lambda path: 1000)
    with pytest.raises(OutOfSpaceError, match="are free"):
        export_hf(plan, "d1", tmp_path / "new")
    assert not (tmp_path / "new.partial").exists() and not (tmp_path / "new").exists()


def test_a_failure_leaves_what_was_there(tiny_artifact, tmp_path, monkeypatch):
    artifact = tiny_artifact("llama")
    out = tmp_path / "out"
    export_hf(plan_hf(artifact, "d1"), "d1", out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def full(*arguments: object, **named: object) -> None:
        import errno

        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pliant.export.hf_folder.write_shard", full)
    with pytest.raises(OutOfSpaceError, match="disk is full"):
        export_hf(plan_hf(artifact, "d2"), "d2", out, force=True)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_weights_beyond_float16_are_refused_with_the_type_that_holds_them() -> None:
    from pliant.export.number_types import stored_numbers

    with pytest.raises(UnsupportedError, match="bf16 or fp32"):
        stored_numbers(np.array([[1e5]], np.float32), "float16", "blocks.0.q")
