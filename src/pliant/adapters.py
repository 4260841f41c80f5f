"""SMoL adapters as values: what they are made of, and which of them a shape uses.

AmoebaLLM's shape-aware mixture of LoRAs (arXiv 2411.10606): each matrix of a block has E pairs of
factors A_i, B_i of rank R, and one router for the whole model gives each shape the gates g of a few
of them. Experts are merged in weight space,

    W(shape) = W + B A,   A = sum_i g_i A_i,   B = scale * sum_i g_i B_i,

so the update of any shape has rank R and not k R, gates enter twice, and a shape has one pair of
factors, made once when it is opened. One expert has the gate 1: a LoRA that all shapes share.

Shape suffixes: E experts, R ranks, O rows and I columns of a matrix, C entries of a shape's code,
H hidden units of the router.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, NamedTuple

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from pliant.errors import ArtifactError, UsageError
from pliant.shape import SubnetShape
from pliant.spec import BLOCK_MATRICES, ModelSpec

MAX_RANK = 256
MAX_EXPERTS = 64
#: Ranks that an engine's vector holds: factors have a multiple of it (`native/kernels/low_rank.h`).
BLOCK_RANKS = 8
#: Hidden units of the router, as published.
ROUTER_WIDTH = 16
#: Gates are multiples of this, so that the last bit of an exponential, in which machines differ,
#: decides nothing.
_GATE_UNIT = 2.0**-16


class AdapterSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Numbers of a model's adapters: `experts` of `rank`, `top_k` of them used by a shape.

    `scale` multiplies each update (alpha / rank of LoRA). Those that are `anchored` spare the full
    shape: it has no update and is what the weights alone make of it.
    """

    rank: Annotated[int, Meta(ge=1, le=MAX_RANK)]
    experts: Annotated[int, Meta(ge=1, le=MAX_EXPERTS)] = 5
    top_k: Annotated[int, Meta(ge=1, le=MAX_EXPERTS)] = 2
    scale: Annotated[float, Meta(gt=0, le=1e4)] = 1.0
    anchored: bool = False

    def __post_init__(self) -> None:
        in_range = 1 <= self.rank <= MAX_RANK and 1 <= self.experts <= MAX_EXPERTS
        if not (in_range and 1 <= self.top_k <= self.experts and 0 < self.scale <= 1e4):
            raise UsageError(
                f"Adapters of rank {self.rank} with {self.experts} experts, {self.top_k} of them "
                f"used, scale {self.scale}, cannot be: ranks lie in 1 .. {MAX_RANK}, experts in "
                f"1 .. {MAX_EXPERTS}, those used in 1 .. all, scales above 0."
            )


class Factors(NamedTuple):
    """One low-rank update `b_OR @ a_RI`, fp32."""

    a_RI: NDArray[np.float32]
    b_OR: NDArray[np.float32]


def router_shapes(spec: ModelSpec, adapters: AdapterSpec) -> dict[str, tuple[int, ...]]:
    """Shapes of the router's tensors by name; none where there is nothing to choose."""
    if adapters.experts == 1:
        return {}
    code = 3 * spec.num_blocks
    return {
        "router.hidden": (ROUTER_WIDTH, code),
        "router.hidden.bias": (ROUTER_WIDTH,),
        "router.output": (adapters.experts, ROUTER_WIDTH),
        "router.output.bias": (adapters.experts,),
    }


def factor_shapes(spec: ModelSpec, adapters: AdapterSpec) -> dict[str, tuple[int, int, int]]:
    """`blocks.{b}.{matrix}.a` is `[E, R, I]`, `.b` is `[E, O, R]`, in stored order."""
    shapes: dict[str, tuple[int, int, int]] = {}
    for block in range(spec.num_blocks):
        for matrix in BLOCK_MATRICES:
            rows, columns = spec.matrix_shape(matrix, spec.num_groups, spec.ffn_size)
            name = f"blocks.{block}.{matrix}"
            shapes[f"{name}.a"] = (adapters.experts, adapters.rank, columns)
            shapes[f"{name}.b"] = (adapters.experts, rows, adapters.rank)
    return shapes


def num_adapter_parameters(spec: ModelSpec, adapters: AdapterSpec) -> int:
    """Numbers that the adapters of a model have, its router included."""
    shapes = {**factor_shapes(spec, adapters), **router_shapes(spec, adapters)}
    return sum(math.prod(shape) for shape in shapes.values())


def shape_code(spec: ModelSpec, shape: SubnetShape) -> NDArray[np.float64]:
    """What a router sees of a shape, `[C]`: what each block of the dense model has lost.

    First 1 for each block left out, then the part of its KV groups that is missing, then of its
    neurons; all 0 for the full shape. The published code names the blocks that stay and has a
    one-hot entry for each width of a list. This one says as much of those, is defined for every
    other width, uniform or not, and leaves out what all shapes have in common, so that fresh
    routers tell shapes apart.
    """
    code = np.ones((3, spec.num_blocks))
    for block, groups, neurons in zip(shape.blocks, shape.groups, shape.neurons, strict=True):
        code[:, block] = 0.0, 1 - groups / spec.num_groups, 1 - neurons / spec.ffn_size
    return code.ravel()


def gates(
    adapters: AdapterSpec, router: Mapping[str, NDArray[np.float32]], code_C: NDArray[np.float64]
) -> dict[int, float]:
    """Experts that a shape uses and their gates, which sum to 1; ascending by expert.

    None for the full shape of anchored adapters. Else a two-layer network (ReLU between), the
    `top_k` highest outputs, the lowest expert first among equals, and a softmax over them. There is
    no noise: a shape has the same gates always.
    """
    if adapters.anchored and not code_C.any():
        return {}
    if adapters.experts == 1:
        return {0: 1.0}
    wide = {name: tensor.astype(np.float64) for name, tensor in router.items()}
    hidden_H = (wide["router.hidden"] * code_C).sum(axis=1) + wide["router.hidden.bias"]
    products_EH = wide["router.output"] * np.maximum(hidden_H, 0.0)
    score_E = products_EH.sum(axis=1) + wide["router.output.bias"]
    if not np.isfinite(score_E).all():
        raise ArtifactError(
            "The router of the adapters gives experts scores that are no numbers; get the artifact "
            "again, or build it again."
        )
    chosen = sorted(np.argsort(-score_E, kind="stable")[: adapters.top_k].tolist())
    weights = [math.exp(score_E[expert] - score_E.max()) for expert in chosen]
    units = [round(weight / sum(weights) / _GATE_UNIT) for weight in weights]
    units[0] += round(1 / _GATE_UNIT) - sum(units)
    return {expert: unit * _GATE_UNIT for expert, unit in zip(chosen, units, strict=True)}


def merged(
    adapters: AdapterSpec,
    chosen: Mapping[int, float],
    a_ERI: NDArray[np.floating],
    b_EOR: NDArray[np.floating],
) -> Factors:
    """The factors of one matrix of a shape: experts weighed by their gates, `scale` within b."""
    a_RI = sum(np.float32(gate) * a_ERI[expert].astype(np.float32)
               for expert, gate in chosen.items())  # fmt: skip
    b_OR = sum(np.float32(gate * adapters.scale) * b_EOR[expert].astype(np.float32)
               for expert, gate in chosen.items())  # fmt: skip
    return Factors(np.asarray(a_RI, np.float32), np.asarray(b_OR, np.float32))


def update_rank(spec: ModelSpec, adapters: AdapterSpec | None, shape: SubnetShape) -> int:
    """Rank of the updates that adapters add to the matrices of a shape; 0 where they add none."""
    if adapters is None or (adapters.anchored and not shape_code(spec, shape).any()):
        return 0
    return adapters.rank


def low_rank_bytes(spec: ModelSpec, shape: SubnetShape, rank: int) -> int:
    """Bytes of the folded factors of a shape as an engine holds them (`runtime/low_rank.py`)."""
    total = 0
    for groups, neurons in zip(shape.groups, shape.neurons, strict=True):
        for matrix in BLOCK_MATRICES:
            rows, columns = spec.matrix_shape(matrix, groups, neurons)
            column_groups, tiles = -(-columns // 64), -(-rows // 32)
            padded = -(-rank // BLOCK_RANKS) * BLOCK_RANKS
            total += padded * column_groups * (64 + 4) + 32 * tiles * (rank + 2)
    return total
