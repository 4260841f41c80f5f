"""Other weights of the same function: rotations and scalings that fold into neighbouring matrices.

Rounding sees weights, and a function has many. Two families are linear between a producer and its
consumers, so that they vanish into both (QuaRot, arXiv 2404.00456; SmoothQuant, arXiv 2211.10438;
AWQ, arXiv 2306.00978), and any codec follows them without knowing:

- *rotations*: an orthogonal Q of the residual stream, once the gains of norms are in the matrices
  that read them (RMSNorm commutes with Q), and one of the values of each KV group, undone by the
  columns of `o`. Q mixes channels that no cut removes, the other stays within a group: every cut
  of heads, neurons and blocks stays the cut it was. Neurons stand behind a nonlinearity and are
  what cuts remove, so they are never rotated.
- *scalings*: a factor for each channel of a norm and the columns that read it, for each value
  channel of a group and the columns of `o`, for each neuron between `up` and `down`.

Shape suffixes: D hidden size, G KV groups, H entries of a head, N heads, F neurons, O rows,
I columns, V vocabulary.
"""

from __future__ import annotations

import math

import msgspec
import torch

from pliant.errors import UnsupportedError
from pliant.models.supernet import Supernet
from pliant.shape import SubnetShape

#: Norms of a block and the matrices that read them.
NORM_READERS = {"attention_norm": ("q", "k", "v"), "mlp_norm": ("gate", "up")}


def hadamard(size: int, seed: int = 0) -> torch.Tensor:
    """An orthogonal matrix `[size, size]`, fp64, whose entries are all of about one magnitude.

    The Hadamard matrix of the power of two in `size`, times (Kronecker) the cosine transform of
    the odd part, with the signs of rows drawn at random: no channel keeps an outlier to itself.
    """
    power = size & -size
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < power:
        matrix = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64), matrix)
    odd = size // power
    place = torch.arange(odd, dtype=torch.float64)
    cosines = torch.cos(math.pi / odd * (place + 0.5) * place[:, None]) * math.sqrt(2 / odd)
    cosines[0] = math.sqrt(1 / odd)
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, (size, 1), generator=generator).double() * 2 - 1
    return signs * torch.kron(cosines, matrix) / math.sqrt(power)


def rotated(supernet: Supernet, seed: int = 0) -> Supernet:
    """The model with residual stream and values rotated; new tensors of the same dtype.

    The gain of the last norm moves into the head, so tied embeddings come apart (V · D weights
    more). `UnsupportedError` where norms follow a block's halves (Gemma): their gains stand between
    `o` or `down` and the stream and cannot be rotated.
    """
    spec = supernet.spec
    if spec.post_norms:
        raise UnsupportedError(
            f"The residual stream of {spec.architecture} cannot be rotated: the gains of the norms "
            "behind attention and MLP have no matrix to move into. Use scaling."
        )
    weights = {name: weight.double() for name, weight in supernet.weights.items()}
    turn_DD, turn_HH = hadamard(spec.hidden_size, seed), hadamard(spec.head_dim, seed + 1)
    head = weights["embedding" if spec.tied_embeddings else "head"]
    weights["head"] = head * (weights["final_norm"] + spec.norm_offset) @ turn_DD
    weights["embedding"] = weights["embedding"] @ turn_DD
    unit_D = torch.full_like(weights["final_norm"], 1 - spec.norm_offset)
    weights["final_norm"] = unit_D
    for block in range(spec.num_blocks):
        prefix = f"blocks.{block}."
        for norm, readers in NORM_READERS.items():
            gain_D = weights[prefix + norm] + spec.norm_offset
            for name in readers:
                weights[prefix + name] = weights[prefix + name] * gain_D @ turn_DD
            weights[prefix + norm] = unit_D
        for name in (prefix + "o", prefix + "down"):
            weights[name] = turn_DD.T @ weights[name]
            if f"{name}.bias" in weights:
                weights[f"{name}.bias"] = turn_DD.T @ weights[f"{name}.bias"]
        for name in (prefix + "v", prefix + "v.bias"):
            if name in weights:
                value = weights[name]
                turned = turn_HH.T @ value.reshape(spec.num_groups, spec.head_dim, -1)
                weights[name] = turned.reshape(value.shape)
        o_DNH = weights[prefix + "o"].view(spec.hidden_size, -1, spec.head_dim)
        weights[prefix + "o"] = (o_DNH @ turn_HH).flatten(1)
    untied = msgspec.structs.replace(spec, tied_embeddings=False)
    tensors = {name: weights[name].to(supernet.weights["embedding"].dtype) for name in weights}
    return Supernet.from_tensors(untied, tensors)


class Scaling(msgspec.Struct, frozen=True):
    """Factors above 0 of one block, fp64: columns are multiplied, what feeds them is divided.

    `attention_D` and `mlp_D` for the channels of the two norms, `value_GH` for those of the values,
    `neuron_F` between `up` and `down`.
    """

    attention_D: torch.Tensor
    mlp_D: torch.Tensor
    value_GH: torch.Tensor
    neuron_F: torch.Tensor

    @classmethod
    def none(cls, supernet: Supernet) -> Scaling:
        """Factors of 1."""
        spec = supernet.spec
        sizes = ((spec.hidden_size,), (spec.hidden_size,), (spec.num_groups, spec.head_dim),
                 (spec.ffn_size,))  # fmt: skip
        return cls(*(torch.ones(size, dtype=torch.float64) for size in sizes))


def scale_block(supernet: Supernet, block: int, scaling: Scaling) -> None:
    """Fold factors into the weights of one block, in place; the function stays the same."""
    spec, weights = supernet.spec, supernet.weights

    def change(name: str, factor: torch.Tensor, offset: float = 0.0) -> None:
        full = f"blocks.{block}.{name}"
        if full in weights:
            old = weights[full]
            weights[full] = ((old.double() + offset) * factor - offset).to(old.dtype)

    factors = {"attention_norm": scaling.attention_D, "mlp_norm": scaling.mlp_D}
    for norm, readers in NORM_READERS.items():
        change(norm, 1 / factors[norm], spec.norm_offset)
        for name in readers:
            change(name, factors[norm])
    value_I = scaling.value_GH.flatten()
    change("v", 1 / value_I[:, None])
    change("v.bias", 1 / value_I)
    change("o", scaling.value_GH.repeat_interleave(spec.heads_per_group, 0).flatten())
    change("up", 1 / scaling.neuron_F[:, None])
    change("up.bias", 1 / scaling.neuron_F)
    change("down", scaling.neuron_F)


def copied(supernet: Supernet) -> Supernet:
    """A model that shares tensors with this one until they are replaced."""
    return Supernet(supernet.spec, dict(supernet.weights), SubnetShape.full(supernet.spec))
