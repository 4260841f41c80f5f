"""What each tensor is called in a Hugging Face checkpoint."""

from __future__ import annotations

from collections.abc import Collection

from pliant.spec.model import ModelSpec

#: Names within a block that all architectures share.
_BLOCK_NAMES = {
    "attention_norm": "input_layernorm.weight",
    "q": "self_attn.q_proj.weight",
    "k": "self_attn.k_proj.weight",
    "v": "self_attn.v_proj.weight",
    "o": "self_attn.o_proj.weight",
    "q_norm": "self_attn.q_norm.weight",
    "k_norm": "self_attn.k_norm.weight",
    "mlp_norm": "post_attention_layernorm.weight",
    "gate": "mlp.gate_proj.weight",
    "up": "mlp.up_proj.weight",
    "down": "mlp.down_proj.weight",
}

#: With norms on the outputs, `post_attention_layernorm` means another norm.
_POST_NORM_NAMES = {
    "attention_post_norm": "post_attention_layernorm.weight",
    "mlp_norm": "pre_feedforward_layernorm.weight",
    "mlp_post_norm": "post_feedforward_layernorm.weight",
}

#: Where the decoder and its head may lie: plain models, then two generations of multimodal ones.
_PLACES = (
    ("model.", "lm_head.weight"),
    ("language_model.model.", "language_model.lm_head.weight"),
    ("model.language_model.", "lm_head.weight"),
)

#: Beginnings of tensor names of the other parts of a multimodal checkpoint.
_OTHER_PARTS = (
    "vision_tower.",
    "multi_modal_projector.",
    "model.vision_tower.",
    "model.multi_modal_projector.",
)

#: Endings of buffers that old checkpoints store and that are computed from the config.
_COMPUTED_BUFFERS = (".rotary_emb.inv_freq",)


def checkpoint_names(spec: ModelSpec, present: Collection[str] = ()) -> dict[str, str]:
    """Name in the checkpoint of every tensor of `spec.tensors()`, by its pliant name.

    `present` are the names found in the files: they decide where in a multimodal checkpoint the
    decoder lies. Without them the names are those of a plain causal language model.
    """
    places = (place for place in _PLACES if f"{place[0]}embed_tokens.weight" in present)
    prefix, head = next(places, _PLACES[0])
    names = {
        "embedding": f"{prefix}embed_tokens.weight",
        "head": head,
        "final_norm": f"{prefix}norm.weight",
    }
    block_names = {**_BLOCK_NAMES, **(_POST_NORM_NAMES if spec.post_norms else {})}
    for pliant_name in spec.tensors():
        if pliant_name.startswith("blocks."):
            _, block, name = pliant_name.split(".", 2)
            theirs = block_names[name.removesuffix(".bias")]
            if name.endswith(".bias"):
                theirs = theirs.removesuffix("weight") + "bias"
            names[pliant_name] = f"{prefix}layers.{block}.{theirs}"
    return {name: names[name] for name in spec.tensors()}


def head_name(names: dict[str, str]) -> str:
    """Name a checkpoint gives to a head, whether or not `names` has one of its own."""
    prefix = names["embedding"].removesuffix("embed_tokens.weight")
    return dict(_PLACES)[prefix]


def is_ignorable(name: str) -> bool:
    """Whether a tensor that the decoder does not use may be there all the same."""
    return name.startswith(_OTHER_PARTS) or name.endswith(_COMPUTED_BUFFERS)
