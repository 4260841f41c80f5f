"""Configs old and new become the right spec; what cannot be computed is refused with the reason."""

from __future__ import annotations

from typing import Any

import pytest

from pliant.errors import CheckpointError, PliantError, UnsupportedError
from pliant.spec import ARCHITECTURES, ModelSpec, Rope, read_spec

#: Fields every config states.
SIZES = {
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
}


def spec(model_type: str, **fields: Any) -> ModelSpec:
    return read_spec({"model_type": model_type, **SIZES, **fields})


def test_llama_with_nothing_but_its_sizes_takes_the_documented_defaults() -> None:
    llama = spec("llama")
    assert llama.num_groups == 4
    assert llama.head_dim == 16
    assert llama.max_context == 2048
    assert llama.attention_scale == 0.25
    assert llama.ropes == (Rope(base=10_000.0),)
    assert llama.block_windows == (0, 0, 0, 0)
    assert not (llama.tied_embeddings or llama.qkv_bias or llama.o_bias or llama.mlp_bias)


def test_null_means_left_out() -> None:
    fields = dict.fromkeys(
        ["num_key_value_heads", "head_dim", "rope_scaling", "rope_theta", "tie_word_embeddings",
         "attention_bias", "layer_types", "quantization_config"]
    )  # fmt: skip
    assert spec("llama", **fields) == spec("llama")


def test_llama3_old_and_new_form_are_one() -> None:
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 8192, "rope_type": "llama3"}  # fmt: skip
    old = spec("llama", rope_theta=5e5, rope_scaling=scaling, max_position_embeddings=131072)
    new = spec(
        "llama",
        rope_parameters={**scaling, "rope_theta": 5e5},
        max_position_embeddings=131072,
    )
    assert old == new
    assert old.ropes == (Rope(base=5e5, kind="llama3", factor=8.0, original_context=8192),)


def test_oldest_form_calls_the_kind_type() -> None:
    llama = spec("llama", rope_scaling={"type": "linear", "factor": 2})
    assert llama.ropes == (Rope(kind="linear", factor=2.0),)


def test_mistral_slides_everywhere_unless_told_null() -> None:
    mistral = spec("mistral", num_attention_heads=16)
    assert mistral.block_windows == (4096,) * 4
    assert mistral.num_groups == 8
    full = spec("mistral", num_attention_heads=16, sliding_window=None)
    assert full.block_windows == (0,) * 4


def test_qwen2_has_biases_on_q_k_v_only() -> None:
    qwen = spec("qwen2", num_key_value_heads=2)
    assert [qwen.has_bias(matrix) for matrix in ("q", "k", "v", "o", "gate", "up", "down")] == [
        True, True, True, False, False, False, False]  # fmt: skip


def test_qwen2_slides_only_when_switched_on_and_after_the_window_layers() -> None:
    fields = {"num_key_value_heads": 2, "sliding_window": 8, "max_window_layers": 2}
    assert spec("qwen2", **fields).block_windows == (0, 0, 0, 0)
    assert spec("qwen2", **fields, use_sliding_window=True).block_windows == (0, 0, 8, 8)


def test_qwen3_defaults() -> None:
    qwen = spec("qwen3", num_key_value_heads=1, attention_bias=True)
    assert (qwen.head_dim, qwen.qk_norm, qwen.qkv_bias, qwen.o_bias) == (128, True, True, True)


def test_gemma2_alternates_and_caps() -> None:
    gemma = spec("gemma2", hidden_act="gelu", query_pre_attn_scalar=144)
    assert gemma.block_windows == (4096, 0, 4096, 0)
    assert (gemma.attention_softcap, gemma.logit_softcap) == (50.0, 30.0)
    assert (gemma.activation, gemma.norm_offset, gemma.post_norms) == ("gelu_tanh", 1.0, True)
    assert (gemma.embedding_scale, gemma.attention_scale) == (8.0, 1 / 12)
    assert gemma.tied_embeddings
    assert spec("gemma2", attn_logit_softcapping=None).attention_softcap == 0


def test_gemma3_old_and_new_form_are_one() -> None:
    sizes = {**SIZES, "num_hidden_layers": 8}
    shared = {"model_type": "gemma3_text", **sizes, "sliding_window": 512}
    old = read_spec({
        **shared, "sliding_window_pattern": 6, "rope_theta": 1e6, "rope_local_base_freq": 1e4,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    })  # fmt: skip
    kinds = ["full_attention" if block == 5 else "sliding_attention" for block in range(8)]
    new = read_spec({
        **shared, "layer_types": kinds,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        },
    })  # fmt: skip
    assert old == new
    assert old.architecture == "gemma3"
    assert old.block_windows == (512,) * 5 + (0,) + (512,) * 2
    assert [old.ropes[rope].base for rope in old.block_ropes] == [1e4] * 5 + [1e6] + [1e4] * 2


def test_multimodal_gemma3_leaves_most_to_defaults() -> None:
    text = {"hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text",
            "num_hidden_layers": 34, "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window": 1024}  # fmt: skip
    gemma = read_spec({"model_type": "gemma3", "text_config": text, "vision_config": {}})
    assert (gemma.vocab_size, gemma.num_heads, gemma.num_groups) == (262_208, 8, 4)
    assert (gemma.head_dim, gemma.max_context, gemma.attention_scale) == (256, 131_072, 1 / 16)
    assert gemma.tied_embeddings
    assert gemma.block_windows[:6] == (1024,) * 5 + (0,)


def test_smollm3_leaves_every_fourth_block_unrotated() -> None:
    smol = spec("smollm3", num_attention_heads=4)
    assert smol.block_ropes == (0, 0, 0, -1)
    assert smol.ropes[0].base == 2e6
    assert smol.tied_embeddings
    assert spec("smollm3", no_rope_layers=[0, 1, 1, 0]).block_ropes == (-1, 0, 0, -1)


UNSUPPORTED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown architecture": ({"model_type": "mamba"}, "gemma2, gemma3, llama, mistral"),
    "mixture of experts": ({"num_local_experts": 8}, "mixtures of experts"),
    "quantized": ({"quantization_config": {"quant_method": "gptq"}}, "already quantized"),
    "cross-attention": ({"add_cross_attention": True}, "cross-attention"),
    "partial rotation": ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    "unknown rope": ({"rope_scaling": {"rope_type": "longrope"}}, "longrope"),
    "unknown activation": ({"hidden_act": "relu2"}, "relu2"),
    "bidirectional": ({"use_bidirectional_attention": True}, "causal"),
    "ignored layer types": ({"layer_types": ["sliding_attention"] * 4}, "layer_types"),
    "linear attention": (
        {"model_type": "qwen3", "layer_types": ["linear_attention"] * 4}, "linear_attention"
    ),
    "uneven groups": ({"num_key_value_heads": 3}, "3 KV groups"),
    "odd head": ({"head_dim": 5}, "head_dim is 5"),
    "flat ropes where they differ": (
        {"model_type": "gemma3_text", "rope_parameters": {"rope_type": "default"}}, "per layer type"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_unsupported_configs_are_refused_with_the_reason(case: str) -> None:
    fields, reason = UNSUPPORTED[case]
    with pytest.raises(UnsupportedError, match=reason) as caught:
        read_spec({"model_type": "llama", **SIZES, **fields})
    assert caught.value.exit_code == 5


def test_unknown_architecture_lists_all_that_are_known() -> None:
    with pytest.raises(UnsupportedError) as caught:
        read_spec({"model_type": "gpt2"})
    assert all(name in str(caught.value) for name in ARCHITECTURES)


DAMAGED: dict[str, tuple[dict[str, Any], str]] = {
    "wrong type": ({"hidden_size": "64"}, "hidden_size"),
    "negative": ({"num_hidden_layers": -1}, "num_hidden_layers"),
    "beyond all integers": ({"model_type": "gemma2", "hidden_size": 10**400}, "hidden_size"),
    "a field that is no Unicode": ({"vocab_\ud800": 1}, "surrogates"),
    "absurd": ({"num_hidden_layers": 10**12}, "num_hidden_layers"),
    "zero heads": ({"num_attention_heads": 0}, "num_attention_heads"),
    "no factor": ({"rope_scaling": {"rope_type": "linear"}}, "no factor"),
    "rope of wrong type": ({"rope_scaling": {"rope_type": "linear", "factor": "x"}}, "factor"),
    "no llama3 factors": ({"rope_scaling": {"rope_type": "llama3", "factor": 2}}, "freq_factor"),
    "rope is a list": ({"rope_parameters": [1]}, "rope_parameters"),
    "short layer types": ({"model_type": "qwen3", "layer_types": ["full_attention"]}, "1 entries"),
    "slides without window": (
        {"model_type": "gemma2", "sliding_window": None}, "sliding_window is None"
    ),
    "slides while switched off": (
        {"model_type": "qwen3", "layer_types": ["sliding_attention"] * 4}, "use_sliding_window"
    ),
    "short no_rope_layers": ({"model_type": "smollm3", "no_rope_layers": [1]}, "1 entries"),
    "no query scalar": ({"model_type": "gemma2", "query_pre_attn_scalar": 0}, "query_pre_attn"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_configs_name_the_field(case: str) -> None:
    fields, named = DAMAGED[case]
    with pytest.raises(CheckpointError, match=named):
        read_spec({"model_type": "llama", **SIZES, **fields})


@pytest.mark.parametrize("field", SIZES)
def test_missing_sizes_are_named(field: str) -> None:
    config = {"model_type": "llama", **SIZES}
    del config[field]
    with pytest.raises(CheckpointError, match=field):
        read_spec(config)


HOSTILE: list[Any] = [
    None, -1, 0, 1.5, 1e300, float("nan"), float("inf"), 10**30, "x", "", [], {}, [None], [1] * 4,
    True, {"rope_type": []}, {"full_attention": 3}, {"rope_type": "yarn", "factor": 1e300},
    {"rope_type": "yarn", "beta_fast": 0, "mscale": -1.0}, {"rope_type": "llama3", "factor": -1},
]  # fmt: skip


@pytest.mark.parametrize("value", HOSTILE)
@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_no_value_of_any_field_escapes_the_error_tree(model_type: str, value: Any) -> None:
    from pliant.spec.text_config import TextConfig

    for field in TextConfig.__struct_fields__:
        config = {"model_type": model_type, **SIZES, "num_key_value_heads": 2, field: value}
        try:
            read_spec(config)
        except PliantError as error:
            assert str(error)
