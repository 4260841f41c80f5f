"""`ShapeSpace`: every shape of an artifact, depth x width, in whole blocks and finer units."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from pliant.errors import UsageError
from pliant.shape.finer import WidthRanking, shape_of_halves
from pliant.shape.subnet_shape import SubnetShape
from pliant.spec import ModelSpec

#: Width ratios offered by default: eighths, down to a quarter.
DEFAULT_WIDTHS = (1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25)


class ShapeSpace(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The grid of kept blocks x width ratios that a search enumerates.

    `depths` holds the kept blocks for each depth (as a `DepthPath` chose them), deepest model
    first; `widths` holds ratios in (0, 1], falling. A ratio whose rounded widths equal those of
    a larger one is left out when the space is made by `of`. Two finer axes may join the grid:
    `halves` holds kept halves of blocks for each number of them, falling, as further depths; and
    with a `ranking` every width below 1 is offered once more, spread over the blocks by it.
    """

    spec: ModelSpec
    depths: tuple[tuple[int, ...], ...]
    widths: tuple[float, ...] = (1.0,)
    alignment: int = 64
    halves: tuple[tuple[int, ...], ...] = ()
    ranking: WidthRanking | None = None

    def __post_init__(self) -> None:
        counts = [len(blocks) for blocks in self.depths]
        if not counts or not self.widths:
            raise UsageError("A space of shapes needs one depth and one width at least.")
        if counts != sorted(set(counts), reverse=True):
            raise UsageError(f"Depths {counts} must fall, each named once.")
        if list(self.widths) != sorted(set(self.widths), reverse=True):
            raise UsageError(f"Widths {self.widths} must fall, each named once.")
        half_counts = [len(kept) for kept in self.halves]
        if half_counts != sorted(set(half_counts), reverse=True):
            raise UsageError(f"Numbers of halves {half_counts} must fall, each named once.")
        if self.ranking is not None:
            self.ranking.check(self.spec)
        for shape in self:
            shape.check_against(self.spec)

    @classmethod
    def of(
        cls,
        spec: ModelSpec,
        blocks_by_depth: dict[int, tuple[int, ...]],
        widths: tuple[float, ...] = DEFAULT_WIDTHS,
        alignment: int = 64,
    ) -> ShapeSpace:
        """The space of the given depths and of those widths that differ once rounded."""
        distinct: dict[SubnetShape, float] = {}
        for width in sorted(set(widths), reverse=True):
            distinct.setdefault(SubnetShape.uniform(spec, (0,), width, alignment), width)
        depths = tuple(blocks_by_depth[depth] for depth in sorted(blocks_by_depth, reverse=True))
        return cls(spec, depths, tuple(distinct.values()), alignment)

    def shape(self, depth: int, width: float) -> SubnetShape:
        """The shape that keeps `depth` blocks at a width ratio; any ratio in (0, 1] is taken."""
        for blocks in self.depths:
            if len(blocks) == depth:
                return SubnetShape.uniform(self.spec, blocks, width, self.alignment)
        known = ", ".join(str(len(blocks)) for blocks in self.depths)
        raise UsageError(f"There is no choice of {depth} blocks; the depths stored are {known}.")

    def items(self) -> Iterator[tuple[int, float, SubnetShape]]:
        """All of `(depth, width, shape)` of the grid of whole blocks alike, the largest first."""
        for blocks in self.depths:
            for width in self.widths:
                yield len(blocks), width, self.shape(len(blocks), width)

    def named(self) -> Iterator[tuple[str, SubnetShape]]:
        """Every shape under its address: the grid, its smallest last, finer ones before that."""
        grid = [(f"d{depth}-w{width:g}", shape) for depth, width, shape in self.items()]
        yield from grid[:-1]
        for kept in self.halves:
            for width in self.widths:
                shape = shape_of_halves(self.spec, kept, width, self.alignment)
                yield f"h{len(kept)}-w{width:g}", shape
        yield from self._ranked()
        yield grid[-1]

    def _ranked(self) -> Iterator[tuple[str, SubnetShape]]:
        if self.ranking is None:
            return
        wholes = [(f"d{len(kept)}", self.shape(len(kept), 1.0)) for kept in self.depths]
        wholes += [(f"h{len(kept)}", shape_of_halves(self.spec, kept)) for kept in self.halves]
        for name, whole in wholes:
            for width in self.widths:
                if width < 1:
                    yield f"{name}-g{width:g}", self.ranking.shape(self.spec, whole, width)

    def __iter__(self) -> Iterator[SubnetShape]:
        return (shape for _, shape in self.named())

    def __len__(self) -> int:
        depths, narrower = len(self.depths) + len(self.halves), sum(w < 1 for w in self.widths)
        return depths * (len(self.widths) + (narrower if self.ranking else 0))
