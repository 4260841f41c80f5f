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

    `is_mixed` says that its matrices read other planes than its address states.
    `predicted_loss` is in the unit of the sensitivities (nats per token); `memory_bytes` is what
    the cost function says the subnet needs while it runs, `seconds_per_token` what decoding takes
    it (None where nobody asked).
    """

    address: CutAddress
    subnet: Subnet
    predicted_loss: float
    memory_bytes: int
    is_mixed: bool = False
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
    """The grid of cuts that are searched: blocks kept, width ratios, planes, vocabulary planes.

    `halves` are numbers of half blocks kept, further choices beside `depths`; `ranked_widths` are
    ratios ranked across blocks, further choices beside `widths`.
    """

    depths: tuple[int, ...]
    widths: tuple[float, ...]
    planes: tuple[int, ...]
    vocabulary_planes: tuple[int, ...]
    halves: tuple[int, ...] = ()
    ranked_widths: tuple[float, ...] = ()

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
            halves=tuple(sorted(sensitivities.halves)),
            ranked_widths=tuple(sorted(sensitivities.ranked_width)),
        )

    def __len__(self) -> int:
        return math.prod(self.sizes)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Choices of each axis."""
        depths = len(self.depths) + len(self.halves)
        widths = len(self.widths) + len(self.ranked_widths)
        return depths, widths, len(self.planes), len(self.vocabulary_planes)

    def address(self, genome: Sequence[int]) -> CutAddress:
        """The cut that takes choice `genome[axis]` of each axis."""
        depth_gene, width_gene, planes_gene, vocabulary_gene = genome
        halves, is_halves = self._depth_choices()[depth_gene]
        width, is_ranked = self._width_choices()[width_gene]
        planes = self.planes[planes_gene]
        vocabulary_planes = self.vocabulary_planes[vocabulary_gene]
        default = BitPlan.uniform(1, planes).embedding
        return CutAddress(
            depth=None if is_halves else halves // 2,
            width=width,
            planes=planes,
            vocabulary_planes=None if vocabulary_planes == default else vocabulary_planes,
            halves=halves if is_halves else None,
            is_ranked=is_ranked,
        )

    def _depth_choices(self) -> list[tuple[int, bool]]:
        """Halves kept and whether they are chosen one by one, the fewest first."""
        whole = [(2 * depth, False) for depth in self.depths]
        return sorted(whole + [(halves, True) for halves in self.halves])

    def _width_choices(self) -> list[tuple[float, bool]]:
        """Width ratios and whether they are ranked across blocks, the smallest first."""
        alike = [(width, False) for width in self.widths]
        return sorted(alike + [(width, True) for width in self.ranked_widths])

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
            # Matrices may have fewer of their own; losses are measured with each at most so many.
            planes=max(n for block in bits.blocks for n in msgspec.structs.astuple(block)),
            vocabulary_planes=bits.embedding,
            halves=address.halves,
            is_ranked=address.is_ranked,
        )
        loss += sensitivities.cache_increase(bits.cache.bits)
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
    """The address without a depth where all blocks are kept: `d8-b4` of eight blocks is `b4`.

    Bits of the cache are those of the subnet, which are left out where they are 16.
    """
    bits = subnet.bits.cache.bits
    address = msgspec.structs.replace(address, cache_bits=None if bits == 16 else bits)
    keeps_all = subnet.shape.num_halves == 2 * subnet.spec.num_blocks
    return msgspec.structs.replace(address, depth=None, halves=None) if keeps_all else address
