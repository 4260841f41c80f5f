"""The rotary embeddings a config.json describes, in any of the forms `transformers` has written."""

from __future__ import annotations

from typing import Any, get_args

import msgspec

from pliant.errors import CheckpointError, UnsupportedError
from pliant.spec.rope import Rope, RopeKind
from pliant.spec.text_config import FULL, SLIDING, TextConfig

#: Field of `Rope` for each name in a config's rotary parameters.
_ROPE_FIELDS = {
    "rope_theta": "base",
    "factor": "factor",
    "original_max_position_embeddings": "original_context",
    "low_freq_factor": "low_frequency_factor",
    "high_freq_factor": "high_frequency_factor",
    "beta_fast": "beta_fast",
    "beta_slow": "beta_slow",
    "attention_factor": "attention_factor",
    "mscale": "mscale",
    "mscale_all_dim": "mscale_all_dim",
    "truncate": "truncate",
}

#: What each kind reads; anything else in the parameters has no effect in `transformers` either.
_READ_BY_KIND = {
    "default": {"rope_theta"},
    "linear": {"rope_theta", "factor"},
    "dynamic": {"rope_theta", "factor"},
    "llama3": {"rope_theta", "factor", "original_max_position_embeddings", "low_freq_factor",
               "high_freq_factor"},
    "yarn": set(_ROPE_FIELDS) - {"low_freq_factor", "high_freq_factor"},
}  # fmt: skip

_REQUIRED_BY_KIND = {
    "linear": {"factor"},
    "dynamic": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor"},
}


def read_rope(config: TextConfig, kind: str, *, has_local: bool) -> Rope:
    """The rotary embedding of blocks whose layer type is `kind`.

    `has_local`: sliding blocks rotate by `rope_local_base_freq` and without the context scaling of
    the others (Gemma 3). `UnsupportedError` for a kind of scaling that pliant does not compute;
    `CheckpointError` for parameters that are missing or no numbers.
    """
    local = has_local and kind == SLIDING
    given = config.rope_parameters or {}
    if FULL in given or SLIDING in given:
        given = given.get(kind) or {}
    elif has_local and given:
        raise UnsupportedError("rope_parameters must be given per layer type here.")
    if not isinstance(given, dict):
        raise CheckpointError(f"rope_parameters of {kind} is {given!r}; it should be an object.")
    if config.rope_scaling and not local:
        given = {**given, **config.rope_scaling}
    base = config.rope_local_base_freq if local else config.rope_theta
    present = {key: value for key, value in given.items() if value is not None}
    return _rope({"rope_theta": base, **present}, config)


def _rope(given: dict[str, Any], config: TextConfig) -> Rope:
    """One rotary embedding from its parameters."""
    kind = given.get("rope_type", given.get("type", "default"))
    if kind not in get_args(RopeKind):
        raise UnsupportedError(
            f"The RoPE type {kind!r} is not supported; pliant rotates by "
            f"{', '.join(get_args(RopeKind))}."
        )
    partial = given.get("partial_rotary_factor", config.partial_rotary_factor)
    if partial not in (None, 1):
        raise UnsupportedError(f"partial_rotary_factor is {partial}; only full rotation works.")
    for field in _REQUIRED_BY_KIND.get(kind, ()):
        if field not in given:
            raise CheckpointError(f"The RoPE scaling {kind!r} in config.json has no {field}.")
    fields = {key: value for key, value in given.items() if key in _READ_BY_KIND[kind]}
    fields |= _original_context(kind, fields, config)
    if kind == "yarn":
        original = fields["original_max_position_embeddings"]
        fields.setdefault("factor", config.max_position_embeddings / max(original, 1))
    try:
        renamed = {_ROPE_FIELDS[key]: value for key, value in fields.items()}
        return msgspec.convert({"kind": kind, **renamed}, Rope)
    except msgspec.ValidationError as error:
        raise CheckpointError(f"The RoPE parameters cannot be read: {error}.") from error


def _original_context(kind: str, given: dict[str, Any], config: TextConfig) -> dict[str, Any]:
    """The context before stretching, by the precedence of `transformers`."""
    field = "original_max_position_embeddings"
    match kind:
        case "dynamic":
            return {field: config.max_position_embeddings}
        case "llama3" | "yarn":
            outside = config.original_max_position_embeddings
            return {field: outside or given.get(field, config.max_position_embeddings)}
    return {}
