"""`DenseWeights`: the tensors of a subnet as plain float32, by their names in the artifact.

A target may be unable to hold a shape: widths that differ from block to block, blocks without
attention or MLP, or a number of heads that it refuses. Every block is then filled up with zeros to
the `HeldShape` that it can: a group whose rows of q, k, v and columns of o are zero adds zero to
the output of attention, and so does a neuron whose rows of gate and up are zero. A half that is
left out becomes one of zeros, its norms and biases too. The function stays the same; only bytes are
added.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import numpy as np
from numpy.typing import NDArray

from pliant.artifact import Artifact
from pliant.bits import Codec, codecs
from pliant.runtime.low_rank import decode_factors, encode_factors
from pliant.spec import BLOCK_MATRICES, ModelSpec
from pliant.subnet import Subnet

#: Neurons of an MLP of zeros where no block keeps any: whole blocks of every type of GGUF but the
#: widest.
_FEWEST_NEURONS = 64


class HeldShape(msgspec.Struct, frozen=True):
    """The one width that a target gives to every block: KV groups and neurons."""

    groups: int
    neurons: int

    @classmethod
    def around(cls, subnet: Subnet) -> HeldShape:
        """The smallest that holds every block of `subnet`; no target goes without any half."""
        fewest = min(_FEWEST_NEURONS, subnet.spec.ffn_size)
        return cls(max(1, *subnet.shape.groups), max(fewest, *subnet.shape.neurons))

    def padding(self, subnet: Subnet) -> int:
        """Weights of zero that filling up adds to the matrices of `subnet`."""
        spec, added = subnet.spec, 0
        for groups, neurons in zip(subnet.shape.groups, subnet.shape.neurons, strict=True):
            for matrix in BLOCK_MATRICES:
                rows, columns = spec.matrix_shape(matrix, groups, neurons)
                held_rows, held_columns = spec.matrix_shape(matrix, self.groups, self.neurons)
                added += held_rows * held_columns - rows * columns
        return added


def held_spec(subnet: Subnet, held: HeldShape) -> ModelSpec:
    """The spec of a dense model that is `subnet` with every block filled up to `held`."""
    spec, blocks = subnet.spec, subnet.shape.blocks
    return msgspec.structs.replace(
        spec,
        num_blocks=len(blocks),
        num_heads=held.groups * spec.heads_per_group,
        num_groups=held.groups,
        ffn_size=held.neurons,
        block_windows=tuple(spec.block_windows[block] for block in blocks),
        block_ropes=tuple(spec.block_ropes[block] for block in blocks),
        tied_embeddings=spec.tied_embeddings and subnet.bits.embedding == subnet.bits.head,
    )


class DenseWeights:
    """What a subnet reads of an artifact, decoded and filled up to `held`, one tensor at a time.

    Blocks are numbered from 0 as the exported model has them. Tied embeddings whose two uses read
    different planes become two matrices. Adapters are added to the weights, rounded as the engine
    rounds them.
    """

    def __init__(self, artifact: Artifact, subnet: Subnet, held: HeldShape | None = None) -> None:
        artifact.check(subnet)
        self._update = artifact.low_rank(subnet.shape)
        self.artifact = artifact
        self.subnet = subnet
        self.held = held or HeldShape.around(subnet)
        self.spec = held_spec(subnet, self.held)
        self.codec: Codec = codecs[artifact.manifest.codec.name]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor of the exported model."""
        return self.spec.tensors()

    def tensors(self) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """All tensors, one after another, in the order of `shapes`."""
        for name in self.shapes():
            yield name, self.tensor(name)

    def tensor(self, name: str) -> NDArray[np.float32]:
        """One tensor, float32, of the shape that `shapes` states."""
        if self.is_left_out(name):
            return np.zeros(self.shapes()[name], np.float32)
        stored, planes, kept = self.origin(name)
        if planes:
            value = self.codec.decode(self.artifact.encoded(stored), planes, kept[0], kept[1])
            if self.is_adapted(name):
                assert self._update is not None
                a_RI, b_OR = decode_factors(encode_factors(self._update(stored, *kept)))
                value = value + b_OR @ a_RI
        else:
            value = self.artifact.vector(stored)[: kept[0]]
        return filled(value, self.shapes()[name])

    def is_left_out(self, name: str) -> bool:
        """Whether a tensor belongs to a half of a block that the subnet has not: all zeros."""
        return name.startswith("blocks.") and 0 in self.origin(name)[2]

    def is_adapted(self, name: str) -> bool:
        """Whether adapters are added to a tensor, so that its planes alone are not its values."""
        is_matrix = name.split(".")[-1] in BLOCK_MATRICES
        return self._update is not None and is_matrix and not self.is_left_out(name)

    def origin(self, name: str) -> tuple[str, int, tuple[int, ...]]:
        """A tensor's name in the artifact, planes read (0: a vector), and shape before filling.

        The shape has zeros where the half of the block is left out.
        """
        bits, shape = self.subnet.bits, self.subnet.shape
        if not name.startswith("blocks."):
            planes = {"embedding": bits.embedding, "head": bits.head}.get(name, 0)
            tied_head = name == "head" and self.subnet.spec.tied_embeddings
            return ("embedding" if tied_head else name), planes, self.shapes()[name]
        _, place_text, tensor = name.split(".", 2)
        place = int(place_text)
        there = self.subnet.spec.block_tensors(shape.groups[place], shape.neurons[place])
        kept = there.get(tensor, (0,) * len(self.shapes()[name]))
        planes = getattr(bits.blocks[place], tensor) if tensor in BLOCK_MATRICES else 0
        return f"blocks.{shape.blocks[place]}.{tensor}", planes, kept


def filled(value: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """`value` with zeros behind its rows and columns up to `shape`."""
    if value.shape == shape:
        return value
    larger = np.zeros(shape, np.float32)
    larger[tuple(slice(size) for size in value.shape)] = value
    return larger
