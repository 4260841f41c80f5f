"""The config.json of a subnet, and what `transformers` cannot hold of it.

The config of the dense model is taken and every number that a cut changes is set anew. The result
is read back by `read_spec`, the reader of every build: if it does not say what the subnet is, the
subnet is refused rather than written wrongly.
"""

from __future__ import annotations

from typing import Any

import msgspec

from pliant.errors import PliantError, UnsupportedError
from pliant.export.dense import HeldShape, held_spec
from pliant.spec import ARCHITECTURES, ModelSpec, read_spec
from pliant.spec.text_config import FULL, SLIDING
from pliant.subnet import Subnet

#: Architectures whose config insists that the hidden size is a multiple of the number of heads.
_HEADS_DIVIDE_HIDDEN = ("llama", "gemma2", "gemma3")

#: Fields that describe the dense model only: replaced by explicit lists, or about code and files.
_DROPPED = ("sliding_window_pattern", "max_window_layers", "no_rope_layer_interval", "auto_map",
            "_name_or_path", "transformers_version", "dtype", "per_layer_config",
            "torch_dtype")  # fmt: skip


def held_by_transformers(subnet: Subnet, pad: bool) -> HeldShape:
    """The width at which stock `transformers` classes hold `subnet`.

    They build all blocks alike, and some refuse numbers of heads that do not divide the hidden
    size; a subnet that is neither is filled up with zeros if `pad`, and otherwise refused with
    `UnsupportedError`, which names what can be held.
    """
    spec = subnet.spec
    around = HeldShape.around(subnet)
    groups = next(
        (count for count in range(around.groups, spec.num_groups + 1) if _fits_heads(spec, count)),
        None,
    )
    if groups is None:
        raise UnsupportedError(
            f"transformers takes a {spec.architecture} only where its heads divide the hidden size "
            f"of {spec.hidden_size}, and no count from {around.groups} to {spec.num_groups} groups "
            f"of {spec.heads_per_group} heads does. Export it to gguf."
        )
    held = HeldShape(groups, around.neurons)
    if pad or (subnet.shape.is_uniform and held == around):
        return held
    raise UnsupportedError(_reason(subnet, held))


def _fits_heads(spec: ModelSpec, groups: int) -> bool:
    if spec.architecture not in _HEADS_DIVIDE_HIDDEN:
        return True
    return spec.hidden_size % (groups * spec.heads_per_group) == 0


def _reason(subnet: Subnet, held: HeldShape) -> str:
    spec, shape = subnet.spec, subnet.shape
    if shape.is_uniform:
        found = (
            f"{shape.groups[0] * spec.heads_per_group} heads, which do not divide the hidden size "
            f"of {spec.hidden_size}"
        )
    else:
        found = (
            "blocks of different widths or halves of blocks, and its classes build all blocks "
            "alike and whole"
        )
    return (
        f"The subnet has {found}; transformers cannot hold it as it is. The nearest it can hold "
        f"has {held.groups} groups and {held.neurons} neurons in every block: export with --pad, "
        f"which fills up with {held.padding(subnet):,} weights of zero and computes the same, or "
        "cut the subnet to that width."
    )


def subnet_config(
    config: dict[str, Any], subnet: Subnet, held: HeldShape, dtype: str
) -> dict[str, Any]:
    """The config.json of `subnet` at the width `held`, its weights stored as `dtype`.

    `config` is that of the dense model. `UnsupportedError` where no config of this architecture
    describes the subnet.
    """
    spec = held_spec(subnet, held)
    changed = {key: value for key, value in _decoder_config(config).items() if key not in _DROPPED}
    changed |= {
        "torch_dtype": dtype,
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.hidden_size,
        "num_hidden_layers": spec.num_blocks,
        "num_attention_heads": spec.num_heads,
        "num_key_value_heads": spec.num_groups,
        "head_dim": spec.head_dim,
        "intermediate_size": spec.ffn_size,
        "max_position_embeddings": spec.max_context,
        "tie_word_embeddings": spec.tied_embeddings,
    }
    row = ARCHITECTURES[spec.architecture]
    if row.own_layer_types:
        changed["layer_types"] = [SLIDING if window else FULL for window in spec.block_windows]
    else:
        changed.pop("layer_types", None)
    if row.unrotated_blocks:
        changed["no_rope_layers"] = [int(rope >= 0) for rope in spec.block_ropes]
    _require_same(changed, spec)
    return changed


def _decoder_config(config: dict[str, Any]) -> dict[str, Any]:
    """The config of the decoder alone; that of a multimodal model is taken out of it."""
    text = config.get("text_config")
    if not isinstance(text, dict):
        return config
    tokens = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")
              if key in config}  # fmt: skip
    return {
        **tokens, **text, "model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"],
    }  # fmt: skip


def _require_same(config: dict[str, Any], spec: ModelSpec) -> None:
    try:
        found = read_spec(config)
    except PliantError as error:
        raise UnsupportedError(
            f"transformers has no config for this subnet: {error} Keep other blocks."
        ) from error
    ours, theirs = _comparable(spec), _comparable(found)
    different = [name for name, value in ours.items() if theirs[name] != value]
    if different:
        name = different[0]
        raise UnsupportedError(
            f"transformers has no config of a {spec.architecture} with {name} {ours[name]}; the "
            f"nearest has {theirs[name]}. Keep other blocks, or export to another target."
        )


def _comparable(spec: ModelSpec) -> dict[str, Any]:
    """The fields of a spec, with the rotation of each block in place of its number."""
    fields = msgspec.structs.asdict(spec)
    ropes = fields.pop("ropes")
    fields["block_ropes"] = [None if rope < 0 else ropes[rope] for rope in fields["block_ropes"]]
    return fields
