"""`StreamedWeights`: the weights of a checkpoint, read when they are asked for, under a limit.

A `Supernet` over them runs a model that is larger than memory, one block at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import groupby

import torch

from pliant.models.permutation import permuted_block
from pliant.models.supernet import Supernet
from pliant.shape import SubnetShape, WidthOrders
from pliant.spec import ModelSpec

#: Reads one fp32 tensor by its pliant name, such as `Checkpoint.tensor`.
ReadTensor = Callable[[str], torch.Tensor]


class StreamedWeights(dict[str, torch.Tensor]):
    """Weights by pliant name that appear when they are looked up with `weights[name]`.

    What belongs together, the tensors of a block or one tensor outside all blocks, is read and
    forgotten together: the unit read first goes first when `max_bytes` of fp32 weights are held.
    One unit is always held, whatever its size. `orders` are baked into each block as it is read.
    """

    def __init__(
        self,
        spec: ModelSpec,
        read: ReadTensor,
        max_bytes: int,
        orders: WidthOrders | None = None,
    ) -> None:
        super().__init__()
        self._spec = spec
        self._read = read
        self._max_bytes = max_bytes
        self._orders = orders
        self._units = weight_units(spec)
        self._unit_of = {name: unit for unit in self._units for name in unit}
        self._held: list[tuple[str, ...]] = []
        self._held_bytes = 0

    def __missing__(self, name: str) -> torch.Tensor:
        unit = self._unit_of[name]
        while self._held and self._held_bytes + self._units[unit] > self._max_bytes:
            forgotten = self._held.pop(0)
            self._held_bytes -= self._units[forgotten]
            for tensor in forgotten:
                del self[tensor]
        self.update(self._load(unit))
        self._held.append(unit)
        self._held_bytes += self._units[unit]
        return self[name]

    def _load(self, unit: tuple[str, ...]) -> Mapping[str, torch.Tensor]:
        tensors = {name: self._read(name) for name in unit}
        if self._orders is None or not unit[0].startswith("blocks."):
            return tensors
        block = int(unit[0].split(".")[1])
        prefix = f"blocks.{block}."
        ordered = permuted_block(
            self._spec,
            {name.removeprefix(prefix): tensor for name, tensor in tensors.items()},
            self._orders.groups[block],
            self._orders.neurons[block],
        )
        return {prefix + name: tensor for name, tensor in ordered.items()}


def streamed_supernet(
    spec: ModelSpec, read: ReadTensor, max_bytes: int, orders: WidthOrders | None = None
) -> Supernet:
    """The supernet over `StreamedWeights`; only what runs on weights looked up by name applies."""
    return Supernet(spec, StreamedWeights(spec, read, max_bytes, orders), SubnetShape.full(spec))


def weight_units(spec: ModelSpec) -> dict[tuple[str, ...], int]:
    """Names of tensors that are read together, in stored order, with their bytes in fp32."""

    def unit(name: str) -> str:
        return ".".join(name.split(".")[:2]) if name.startswith("blocks.") else name

    shapes = spec.tensors()
    units = [tuple(names) for _, names in groupby(shapes, key=unit)]
    return {names: sum(4 * math.prod(shapes[name]) for name in names) for names in units}
