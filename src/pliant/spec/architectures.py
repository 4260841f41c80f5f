"""`ARCHITECTURES`: one row for each family of models that pliant reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from pliant.errors import CheckpointError
from pliant.spec.text_config import FULL, SLIDING, TextConfig


def _all_full(config: TextConfig) -> tuple[str, ...]:
    return (FULL,) * config.num_hidden_layers


def _all_sliding(config: TextConfig) -> tuple[str, ...]:
    kind = FULL if config.sliding_window is None else SLIDING
    return (kind,) * config.num_hidden_layers


def _sliding_after_window_layers(config: TextConfig) -> tuple[str, ...]:
    first = config.max_window_layers
    slides = config.use_sliding_window and config.sliding_window is not None
    blocks = range(config.num_hidden_layers)
    return tuple(SLIDING if slides and block >= first else FULL for block in blocks)


def _every_second_full(config: TextConfig) -> tuple[str, ...]:
    return tuple(FULL if block % 2 else SLIDING for block in range(config.num_hidden_layers))


def _every_nth_full(config: TextConfig) -> tuple[str, ...]:
    period = config.sliding_window_pattern
    blocks = range(config.num_hidden_layers)
    return tuple(SLIDING if (block + 1) % period else FULL for block in blocks)


def _unrotated_sliding(config: TextConfig) -> tuple[str, ...]:
    slides = config.use_sliding_window and config.sliding_window is not None
    return tuple(FULL if rotated or not slides else SLIDING for rotated in rotated_blocks(config))


def rotated_blocks(config: TextConfig) -> tuple[int, ...]:
    """1 for each block that rotates, 0 for each without positions (NoPE, arXiv 2501.18795)."""
    count = config.num_hidden_layers
    if config.no_rope_layers is None:
        interval = config.no_rope_layer_interval
        return tuple(int((block + 1) % interval != 0) for block in range(count))
    if len(config.no_rope_layers) < count:
        raise CheckpointError(
            f"no_rope_layers has {len(config.no_rope_layers)} entries for {count} blocks."
        )
    return config.no_rope_layers[:count]


class Architecture(msgspec.Struct, frozen=True, kw_only=True):
    """How one family of `transformers` models reads its config: a row of `ARCHITECTURES`.

    `defaults` are the documented values of fields a config may leave out, where they differ from
    `TextConfig`. `layer_types` gives each block's kind of attention; where `own_layer_types` is set
    a config may list them itself. `window_switch`: sliding windows count only with
    `use_sliding_window`. `fixed_qkv_bias`: q, k, v have a bias and o has none, whatever the config
    says. `gemma`: norms add 1 to their weight, embeddings are scaled by the root of the hidden
    size, queries by `query_pre_attn_scalar`, and blocks have norms on their outputs, too.
    `attention_softcap`, `logit_softcap`: whether the soft-caps are computed. `local_rope`: sliding
    blocks rotate by `rope_local_base_freq`, without scaling. `unrotated_blocks`: the config may
    name blocks that do not rotate.
    """

    defaults: Mapping[str, Any] = {}
    layer_types: Callable[[TextConfig], tuple[str, ...]] = _all_full
    own_layer_types: bool = False
    window_switch: bool = False
    fixed_qkv_bias: bool = False
    qk_norm: bool = False
    gemma: bool = False
    attention_softcap: bool = False
    logit_softcap: bool = False
    local_rope: bool = False
    unrotated_blocks: bool = False


_GEMMA_DEFAULTS = {
    "tie_word_embeddings": True,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}

ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture(defaults={"max_position_embeddings": 2048}),
    "mistral": Architecture(
        defaults={
            "max_position_embeddings": 131_072,
            "num_key_value_heads": 8,
            "sliding_window": 4096,
        },
        layer_types=_all_sliding,
    ),
    "qwen2": Architecture(
        defaults={
            "max_position_embeddings": 32_768,
            "num_key_value_heads": 32,
            "sliding_window": 4096,
        },
        layer_types=_sliding_after_window_layers,
        own_layer_types=True,
        window_switch=True,
        fixed_qkv_bias=True,
    ),
    "qwen3": Architecture(
        defaults={
            "max_position_embeddings": 32_768,
            "num_key_value_heads": 32,
            "head_dim": 128,
            "sliding_window": 4096,
        },
        layer_types=_sliding_after_window_layers,
        own_layer_types=True,
        window_switch=True,
        qk_norm=True,
    ),
    "gemma2": Architecture(
        defaults={
            **_GEMMA_DEFAULTS,
            "max_position_embeddings": 8192,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
        layer_types=_every_second_full,
        own_layer_types=True,
        gemma=True,
        attention_softcap=True,
        logit_softcap=True,
    ),
    "gemma3": Architecture(
        # The multimodal checkpoints leave most of their text_config to these.
        defaults={
            **_GEMMA_DEFAULTS,
            "vocab_size": 262_208,
            "hidden_size": 2304,
            "intermediate_size": 9216,
            "num_hidden_layers": 26,
            "num_attention_heads": 8,
            "max_position_embeddings": 131_072,
            "rope_theta": 1_000_000.0,
        },
        layer_types=_every_nth_full,
        own_layer_types=True,
        qk_norm=True,
        gemma=True,
        logit_softcap=True,
        local_rope=True,
    ),
    "smollm3": Architecture(
        defaults={
            "max_position_embeddings": 32_768,
            "num_key_value_heads": 4,
            "rope_theta": 2_000_000.0,
            "tie_word_embeddings": True,
        },
        layer_types=_unrotated_sliding,
        own_layer_types=True,
        window_switch=True,
        unrotated_blocks=True,
    ),
}
