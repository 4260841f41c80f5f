"""Mixtures of experts: their numbers, and how a config.json says them.

The engine runs dense models; what a mixture would cost is counted all the same, so that a plan can
say it. `ModelSpec` stays the decoder around the experts, with the neurons of one expert as its FFN.
"""

from __future__ import annotations

from typing import Any

import msgspec

from pliant.errors import CheckpointError, UsageError
from pliant.spec import ModelSpec
from pliant.spec.huggingface import read_spec

#: `model_type` of a mixture -> the dense architecture around its experts.
_MIXTURES = {"mixtral": "mistral", "qwen2_moe": "qwen2", "qwen3_moe": "qwen3"}


class Experts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`count` experts in each of `blocks`, of which every token passes `active`.

    An expert has the neurons that the shape keeps. `shared_neurons` more serve every token (0:
    none); blocks that are not listed have one dense MLP of `dense_neurons`.
    """

    count: int
    active: int
    blocks: tuple[int, ...]
    dense_neurons: int = 0
    shared_neurons: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.active <= self.count:
            raise UsageError(
                f"{self.active} of {self.count} experts cannot be active; use 1 to all."
            )

    def distinct(self, tokens: int) -> float:
        """Experts that `tokens` tokens touch on average where all are equally likely.

        `count * (1 - (1 - active / count) ** tokens)`; GenZ (arXiv 2406.01698) counts `active`
        whatever the batch, which is right for one token only.
        """
        return self.count * (1.0 - (1.0 - self.active / self.count) ** tokens)


class Described(msgspec.Struct, frozen=True, kw_only=True):
    """A model as its config describes it: the decoder and, in a mixture, its experts."""

    spec: ModelSpec
    experts: Experts | None = None


def read_described(config: dict[str, Any]) -> Described:
    """The model of a parsed config.json, mixtures included.

    Raises `UnsupportedError` and `CheckpointError` as `read_spec` does.
    """
    kind = config.get("model_type")
    if kind not in _MIXTURES:
        return Described(spec=read_spec(config))
    count = _count(config, "num_local_experts" if kind == "mixtral" else "num_experts")
    active = _count(config, "num_experts_per_tok")
    dense = {
        key: value
        for key, value in config.items()
        if key not in ("num_local_experts", "num_experts", "n_routed_experts")
    }
    dense_neurons = 0
    if kind != "mixtral":
        dense_neurons = _count(config, "intermediate_size")
        dense["intermediate_size"] = _count(config, "moe_intermediate_size")
    spec = read_spec({**dense, "model_type": _MIXTURES[kind]})
    shared = int(config.get("shared_expert_intermediate_size") or 0)
    stride = int(config.get("decoder_sparse_step") or 1)
    plain = set(config.get("mlp_only_layers") or ())
    blocks = tuple(
        block
        for block in range(spec.num_blocks)
        if kind == "mixtral" or (block not in plain and (block + 1) % stride == 0)
    )
    return Described(
        spec=spec,
        experts=Experts(
            count=count,
            active=active,
            blocks=blocks,
            dense_neurons=dense_neurons,
            shared_neurons=shared,
        ),
    )


def _count(config: dict[str, Any], field: str) -> int:
    value = config.get(field)
    if not isinstance(value, int) or value < 1:
        raise CheckpointError(
            f"config.json of a mixture of experts has {field} = {value!r}; it should be 1 or more."
        )
    return value
