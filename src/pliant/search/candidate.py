"""Candidates: every depth x width x planes x vocabulary planes, with predicted loss and memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import product

import msgspec

from pliant.bits import BitPlan
from pliant.errors import UsageError
from pliant.sensitivities import Sensitivities
from pliant.subnet import CutAddress, Subnet


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """One subnet that could be chosen.

    `predicted_loss` is in the unit of the sensitivities (nats per token); `memory_bytes` is what
    the cost function says the subnet needs while it runs, `seconds_per_token` what decoding takes
    it (None where nobody asked).
    """

    address: CutAddress
    subnet: Subnet
    predicted_loss: float
    memory_bytes: int
    seconds_per_token: float | None = None

    @property
    def is_dense(self) -> bool:
        """Whether nothing but bits was cut: the baseline every other cut must beat."""
        spec, shape = self.subnet.spec, self.subnet.shape
        return (
            len(shape.blocks) == spec.num_blocks
            and min(shape.groups) == spec.num_groups
            and min(shape.neurons) == spec.ffn_size
        )


class SearchSpace(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The grid of cuts that are searched: blocks kept, width ratios, planes, vocabulary planes."""

    depths: tuple[int, ...]
    widths: tuple[float, ...]
    planes: tuple[int, ...]
    vocabulary_planes: tuple[int, ...]

    def __post_init__(self) -> None:
        for name in ("depths", "widths", "planes", "vocabulary_planes"):
            if not getattr(self, name):
                raise UsageError(f"The search space has no {name}; give at least one.")

    @classmethod
    def measured(cls, sensitivities: Sensitivities) -> SearchSpace:
        """Everything for which a sensitivity was measured."""
        return cls(
            depths=tuple(sorted(sensitivities.depth)),
            widths=tuple(sorted(sensitivities.width)),
            planes=tuple(sorted(sensitivities.planes)),
            vocabulary_planes=tuple(sorted(sensitivities.vocabulary_planes)),
        )

    def __len__(self) -> int:
        return math.prod(map(len, self._axes()))

    @property
    def sizes(self) -> tuple[int, ...]:
        """Choices of each axis."""
        return tuple(map(len, self._axes()))

    def address(self, genome: Sequence[int]) -> CutAddress:
        """The cut that takes choice `genome[axis]` of each axis."""
        depth, width, planes, vocabulary_planes = (
            axis[gene] for axis, gene in zip(self._axes(), genome, strict=True)
        )
        default = BitPlan.uniform(int(depth), int(planes)).embedding
        explicit = None if vocabulary_planes == default else int(vocabulary_planes)
        return CutAddress(int(depth), width, int(planes), explicit)

    def _axes(self) -> tuple[tuple[float, ...], ...]:
        return self.depths, self.widths, self.planes, self.vocabulary_planes

    def addresses(self) -> Iterator[CutAddress]:
        """Every cut of the grid; vocabulary planes are written where they are not the default."""
        for genome in product(*map(range, self.sizes)):
            yield self.address(genome)


def candidates(
    space: SearchSpace | Iterable[CutAddress],
    sensitivities: Sensitivities,
    resolve: Callable[[CutAddress], Subnet],
    memory: Callable[[Subnet], int],
) -> list[Candidate]:
    """Every distinct subnet of `space`, or of the addresses given, the smallest memory first.

    `resolve` turns an address into a subnet of the artifact, `memory` counts its bytes. Two widths
    that round to the same shape give one candidate, the better predicted.
    """
    found: dict[Subnet, Candidate] = {}
    # The widest come last and win among equals, so that an address says no cut that is none.
    addresses = space.addresses() if isinstance(space, SearchSpace) else space
    for address in addresses:
        subnet = resolve(address)
        bits = subnet.bits
        loss = sensitivities.predict(
            depth=len(subnet.shape.blocks),
            width=address.width,
            planes=bits.blocks[0].q,
            vocabulary_planes=bits.embedding,
        )
        known = found.get(subnet)
        if known is None or loss <= known.predicted_loss:
            found[subnet] = Candidate(
                address=_shortest(address, subnet),
                subnet=subnet,
                predicted_loss=loss,
                memory_bytes=known.memory_bytes if known else memory(subnet),
            )
    return sorted(found.values(), key=lambda candidate: candidate.memory_bytes)


def _shortest(address: CutAddress, subnet: Subnet) -> CutAddress:
    """The address without a depth where all blocks are kept: `d8-b4` of eight blocks is `b4`."""
    keeps_all = len(subnet.shape.blocks) == subnet.spec.num_blocks
    return msgspec.structs.replace(address, depth=None) if keeps_all else address
