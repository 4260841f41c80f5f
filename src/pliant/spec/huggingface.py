"""`read_spec`: the config.json of a Hugging Face checkpoint as a `ModelSpec`.

A config field that an architecture's own code never looks at has no effect here either. Whatever
cannot be computed exactly is refused with `UnsupportedError`, before any weight is read.
"""

from __future__ import annotations

from typing import Any

import msgspec

from pliant.errors import CheckpointError, UnsupportedError
from pliant.spec.architectures import ARCHITECTURES, Architecture, rotated_blocks
from pliant.spec.model import Activation, ModelSpec
from pliant.spec.rope import Rope
from pliant.spec.rope_config import read_rope
from pliant.spec.text_config import FULL, SLIDING, TextConfig

#: `model_type` values that name a row by another word.
_ALIASES = {"gemma3_text": "gemma3"}

#: `model_type` values whose decoder may be described by a `text_config` of its own.
_MULTIMODAL = {"gemma3"}

#: Config fields that must be absent, null, false or 0, and why.
_REFUSED_FIELDS = {
    "quantization_config": "its weights are already quantized; give the original checkpoint",
    "compression_config": "its weights are already compressed; give the original checkpoint",
    "num_local_experts": "mixtures of experts are not supported",
    "num_experts": "mixtures of experts are not supported",
    "n_routed_experts": "mixtures of experts are not supported",
    "add_cross_attention": "cross-attention is not supported",
    "is_encoder_decoder": "encoder-decoder models are not supported",
    "use_bidirectional_attention": "only causal attention is supported",
}

_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


def read_spec(config: dict[str, Any]) -> ModelSpec:
    """The numbers of the decoder that a parsed config.json describes.

    `UnsupportedError` where pliant cannot compute that decoder exactly, with the reason;
    `CheckpointError` where a field is missing, has the wrong type, or contradicts another.
    """
    name, row = _architecture(config)
    _refuse(config)
    text = config.get("text_config")
    if config["model_type"] in _MULTIMODAL and isinstance(text, dict):
        _refuse(text)
        ties = {key: config[key] for key in ("tie_word_embeddings",) if key in config}
        config = {**text, **ties}
    fields = _parse(config, row)
    return _assembled_spec(name, row, fields)


def _architecture(config: dict[str, Any]) -> tuple[str, Architecture]:
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise CheckpointError("config.json has no model_type; it should name the architecture.")
    name = _ALIASES.get(model_type, model_type)
    if name not in ARCHITECTURES:
        raise UnsupportedError(
            f"The architecture {model_type!r} is not supported; pliant reads "
            f"{', '.join(sorted(ARCHITECTURES))}."
        )
    return name, ARCHITECTURES[name]


def _refuse(config: dict[str, Any]) -> None:
    for field, reason in _REFUSED_FIELDS.items():
        if config.get(field):
            raise UnsupportedError(f"config.json sets {field}: {reason}.")


def _parse(config: dict[str, Any], row: Architecture) -> TextConfig:
    # A null means "none" only for fields that may be none; elsewhere it means "left out".
    nullable = {"sliding_window", "attn_logit_softcapping", "final_logit_softcapping", "head_dim",
                "num_key_value_heads"}  # fmt: skip
    given = {key: value for key, value in config.items() if value is not None or key in nullable}
    try:
        return msgspec.convert({**row.defaults, **given}, TextConfig)
    except ValueError as error:  # of msgspec, and of texts that are no Unicode
        raise CheckpointError(f"config.json cannot be read: {error}.") from error


def _assembled_spec(name: str, row: Architecture, config: TextConfig) -> ModelSpec:
    num_heads = config.num_attention_heads
    head_dim = config.head_dim or config.hidden_size // num_heads
    ropes, block_ropes = _ropes(row, config)
    return ModelSpec(
        architecture=name,
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        num_blocks=config.num_hidden_layers,
        num_heads=num_heads,
        num_groups=num_heads if config.num_key_value_heads is None else config.num_key_value_heads,
        head_dim=head_dim,
        ffn_size=config.intermediate_size,
        max_context=config.max_position_embeddings,
        norm_epsilon=config.rms_norm_eps,
        norm_offset=1.0 if row.gemma else 0.0,
        activation=_activation(config.hidden_activation if row.gemma else config.hidden_act),
        qkv_bias=row.fixed_qkv_bias or config.attention_bias,
        o_bias=config.attention_bias and not row.fixed_qkv_bias,
        mlp_bias=config.mlp_bias,
        qk_norm=row.qk_norm,
        post_norms=row.gemma,
        embedding_scale=config.hidden_size**0.5 if row.gemma else 1.0,
        attention_scale=_attention_scale(row, config, head_dim),
        attention_softcap=row.attention_softcap * (config.attn_logit_softcapping or 0.0),
        logit_softcap=row.logit_softcap * (config.final_logit_softcapping or 0.0),
        ropes=ropes,
        block_windows=_windows(row, config),
        block_ropes=block_ropes,
        tied_embeddings=config.tie_word_embeddings,
    )


def _attention_scale(row: Architecture, config: TextConfig, head_dim: int) -> float:
    scalar = config.query_pre_attn_scalar if row.gemma else max(head_dim, 1)
    if scalar is None or not scalar > 0:
        raise CheckpointError(f"query_pre_attn_scalar is {scalar}; it should be above 0.")
    scale: float = float(scalar) ** -0.5
    return scale


def _activation(name: str) -> Activation:
    if name not in _ACTIVATIONS:
        raise UnsupportedError(
            f"The activation {name!r} is not supported; pliant computes "
            f"{', '.join(sorted(_ACTIVATIONS))}."
        )
    return _ACTIVATIONS[name]


def _layer_types(row: Architecture, config: TextConfig) -> tuple[str, ...]:
    """The kind of attention of each block, checked."""
    expected = row.layer_types(config)
    if config.layer_types is None:
        return expected
    if not row.own_layer_types:
        if set(config.layer_types) - set(expected):
            raise UnsupportedError(
                f"layer_types names {sorted(set(config.layer_types))}, which this architecture's "
                "own code ignores; use the architecture that alternates its attention."
            )
        return expected
    unknown = set(config.layer_types) - {FULL, SLIDING}
    if unknown:
        raise UnsupportedError(f"The layer type {min(unknown)!r} is not supported.")
    if len(config.layer_types) < config.num_hidden_layers:
        raise CheckpointError(
            f"layer_types has {len(config.layer_types)} entries for "
            f"{config.num_hidden_layers} blocks."
        )
    return config.layer_types[: config.num_hidden_layers]


def _windows(row: Architecture, config: TextConfig) -> tuple[int, ...]:
    """Tokens each block looks back on; 0 means all."""
    kinds = _layer_types(row, config)
    window = config.sliding_window
    if SLIDING in kinds and (window is None or window < 1):
        raise CheckpointError(f"layer_types slides, but sliding_window is {window}.")
    if SLIDING in kinds and row.window_switch and not config.use_sliding_window:
        raise CheckpointError("layer_types slides, but use_sliding_window is false.")
    return tuple(window or 0 if kind == SLIDING else 0 for kind in kinds)


def _ropes(row: Architecture, config: TextConfig) -> tuple[tuple[Rope, ...], tuple[int, ...]]:
    """The distinct rotary embeddings, and for each block which of them it uses (-1: none)."""
    kinds = _layer_types(row, config)
    by_kind = {kind: read_rope(config, kind, has_local=row.local_rope) for kind in sorted({*kinds})}
    ropes = tuple(dict.fromkeys(by_kind.values()))
    chosen = [ropes.index(by_kind[kind]) for kind in kinds]
    if row.unrotated_blocks:
        pairs = zip(chosen, rotated_blocks(config), strict=True)
        chosen = [rope if rotates else -1 for rope, rotates in pairs]
    return ropes, tuple(chosen)
