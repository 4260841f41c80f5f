"""GGUF files: every tensor read back by the package `gguf`; what cannot be held is refused."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from pliant.errors import UnsupportedError, UsageError
from pliant.export import export_gguf, plan_gguf
from pliant.export.gguf_metadata import architecture_keys, check_held, gguf_tensor_name, row_order
from pliant.shape import SubnetShape
from pliant.subnet import Subnet

gguf = pytest.importorskip("gguf", reason="the package gguf of the extra `export` is missing")


def read(path: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Metadata and dequantized tensors of a file."""
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {
        tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(
            tuple(tensor.shape[::-1])
        )
        for tensor in reader.tensors
    }
    return fields, tensors


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma3", "smollm3"])
@pytest.mark.parametrize(("address", "kinds"), [("d3-w0.5-b3", "Q4_0 Q5_0"), ("b7-e8", "Q8_0 F16")])
def test_weights_are_those_of_the_planes_to_the_last_bit(
    name, address, kinds, tiny_artifact, tmp_path
):
    artifact = tiny_artifact(name)
    plan = plan_gguf(artifact, address)
    record = export_gguf(plan, address, tmp_path / "out.gguf")
    fields, tensors = read(tmp_path / "out.gguf")
    assert sorted(set(record.storage.replace(",", "").split()) & set(kinds.split())) == sorted(
        kinds.split()
    )
    spec = plan.weights.spec
    for ours, value in plan.weights.tensors():
        expected = value + np.float32(spec.norm_offset if "norm" in ours else 0)
        order = row_order(spec, ours)
        expected = expected if order is None else expected[order]
        found = tensors.pop(gguf_tensor_name(ours))
        if plan.tensors[ours].kind == "F16":
            expected = expected.astype(np.float16).astype(np.float32)
        np.testing.assert_array_equal(found, expected, err_msg=ours)
    assert not tensors
    assert fields["pliant.address"] == address
    assert fields["pliant.weights_are_exact"] is ("F16" not in kinds)
    assert fields["tokenizer.chat_template"].startswith("{% for message")
    assert fields["general.base_model.0.name"] == name
    assert len(fields["tokenizer.ggml.tokens"]) == spec.vocab_size
    assert (tmp_path / "out.gguf").stat().st_size <= plan.num_bytes


def test_halves_that_are_left_out_are_zeros_of_the_smallest_type(tiny_artifact, tmp_path) -> None:
    from interop_models import quick_artifact, tiny_checkpoint

    artifact = quick_artifact(tiny_checkpoint("llama", tmp_path / "a"), tmp_path / "a.pliant")
    whole = artifact.subnet("d3-b4")
    shape = SubnetShape(whole.shape.blocks, (2, 0, 2), (128, 128, 0))
    artifact.save_subnet("halved", Subnet(whole.spec, shape, whole.bits))
    with pytest.raises(UnsupportedError, match=r"halves of blocks.*nearest"):
        plan_gguf(artifact, "halved", pad=False)
    plan = plan_gguf(artifact, "halved")
    export_gguf(plan, "halved", tmp_path / "out.gguf")
    _, tensors = read(tmp_path / "out.gguf")
    for name in ("blk.1.attn_q", "blk.1.attn_output", "blk.2.ffn_gate", "blk.2.ffn_down"):
        assert not tensors[f"{name}.weight"].any()
    assert plan.is_exact and tensors["blk.2.attn_v.weight"].any()
    assert {plan.tensors[name].kind for name in ("blocks.1.q", "blocks.2.down")} == {"Q4_0"}


def test_rows_of_interleaved_rotations_are_pairs(tiny_artifact) -> None:
    spec = plan_gguf(tiny_artifact("llama"), "d1").weights.spec
    order = row_order(spec, "blocks.0.q.bias")
    assert order is not None and order[:4].tolist() == [0, 16, 1, 17]
    assert sorted(order) == list(range(spec.num_heads * spec.head_dim))
    assert row_order(spec, "blocks.0.v") is None


def test_a_type_that_cannot_hold_a_matrix_gives_way_to_one_that_can(tiny_artifact) -> None:
    plan = plan_gguf(tiny_artifact("llama"), "d2-b3", "q4_0")
    kinds = {plan.tensors[name].kind for name in ("blocks.0.q", "blocks.1.down")}
    assert kinds == {"Q4_0"} and plan.tensors["embedding"].kind == "Q5_0" and plan.is_exact
    assert any("2 matrices are Q5_0" in note for note in plan.notes)
    # 64 columns are no block of 256.
    assert plan_gguf(tiny_artifact("llama"), "d2-b4", "Q4_K").tensors["blocks.0.q"].kind == "Q5_0"


def test_what_llama_cpp_cannot_hold(tiny_artifact, tmp_path) -> None:
    with pytest.raises(UnsupportedError, match=r"divisible by 6 .* nearest keep blocks"):
        spec = plan_gguf(tiny_artifact("gemma3"), "").weights.spec
        check_held(msgspec.structs.replace(spec, block_windows=(16, 0, 16, 16, 16, 16)))
    with pytest.raises(UnsupportedError, match="does not rotate"):
        spec = plan_gguf(tiny_artifact("smollm3"), "").weights.spec
        check_held(msgspec.structs.replace(spec, block_ropes=(0, 0, -1, 0, 0)))
    with pytest.raises(UnsupportedError, match=r"scaled by 0\.5"):
        check_held(msgspec.structs.replace(spec, attention_scale=0.5))
    with pytest.raises(UnsupportedError, match="biases of q, k and v"):
        check_held(msgspec.structs.replace(spec, qkv_bias=True))
    with pytest.raises(UsageError, match="choose exact, F32"):
        plan_gguf(tiny_artifact("llama"), "", "q9")


@pytest.mark.parametrize(("name", "blocks", "nearest"), [("smollm3", (1, 2, 3, 4), "d4"),
                                                         ("gemma2", (0, 2), "d2")])  # fmt: skip
def test_the_nearest_depth_that_is_held_is_named(name, blocks, nearest, tmp_path) -> None:
    from interop_models import quick_artifact, tiny_checkpoint

    artifact = quick_artifact(tiny_checkpoint(name, tmp_path / "a"), tmp_path / "a.pliant")
    whole = artifact.subnet(f"d{len(blocks)}")
    shape = SubnetShape(blocks, whole.shape.groups, whole.shape.neurons)
    artifact.save_subnet("other", Subnet(whole.spec, shape, whole.bits))
    with pytest.raises(UnsupportedError, match=f"kept .* that it holds is {nearest}"):
        plan_gguf(artifact, "other")
    plan_gguf(artifact, nearest)


def test_a_window_that_is_ignored_shortens_the_context(tiny_artifact) -> None:
    plan = plan_gguf(tiny_artifact("mistral-window"), "d1")
    assert dict(architecture_keys(plan.weights.spec))["llama.context_length"] == 32
    assert "32 instead of 192 tokens" in plan.notes[0]
