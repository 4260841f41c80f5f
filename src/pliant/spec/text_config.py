"""`TextConfig`: the fields of a Hugging Face config.json that decide what a decoder computes."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from pliant.spec.model import MAX_BLOCKS

#: The two kinds of attention that `layer_types` may name.
FULL, SLIDING = "full_attention", "sliding_attention"

#: Integers that JSON readers agree on; products of them are checked where they are made.
Positive = Annotated[int, msgspec.Meta(ge=1, le=1 << 53)]
BlockCount = Annotated[int, msgspec.Meta(ge=1, le=MAX_BLOCKS)]


class TextConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of a config.json that pliant understands, with their types.

    Fields without a default here must be in the file, unless the architecture's row gives the
    value `transformers` documents as its default.
    """

    vocab_size: Positive
    hidden_size: Positive
    intermediate_size: Positive
    num_hidden_layers: BlockCount
    num_attention_heads: Positive
    num_key_value_heads: Positive | None = None
    head_dim: Positive | None = None
    max_position_embeddings: Positive
    rms_norm_eps: float = 1e-6
    hidden_act: str = "silu"
    hidden_activation: str = "gelu_pytorch_tanh"
    attention_bias: bool = False
    mlp_bias: bool = False
    tie_word_embeddings: bool = False
    rope_theta: float = 10_000.0
    rope_local_base_freq: float = 10_000.0
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    partial_rotary_factor: float | None = None
    original_max_position_embeddings: int | None = None
    layer_types: tuple[str, ...] | None = None
    sliding_window: int | None = None
    use_sliding_window: bool = False
    max_window_layers: int = 28
    sliding_window_pattern: Positive = 6
    no_rope_layers: tuple[int, ...] | None = None
    no_rope_layer_interval: Positive = 4
    query_pre_attn_scalar: float | None = None
    attn_logit_softcapping: float | None = None
    final_logit_softcapping: float | None = None
