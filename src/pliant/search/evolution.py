"""Evolutionary search where a space is too large to be enumerated (Once-for-All, arXiv 1908.09791).

A genome holds one index for each axis; 0 is the smallest choice of an axis, so that all zeros are
the smallest subnet of a space.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import msgspec

from pliant.errors import UsageError

Genome = tuple[int, ...]
#: Cost and loss of genomes, in order; both are lower the better. Called once for each new genome.
Evaluate = Callable[[Sequence[Genome]], Sequence[tuple[float, float]]]


class Evolution(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The numbers of a search; by default those of Once-for-All on a smaller population."""

    population: int = 64
    generations: int = 40
    parents: float = 0.25
    mutated: float = 0.5
    mutation_rate: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        shares = (self.parents, self.mutated, self.mutation_rate)
        if self.population < 4 or self.generations < 1 or not all(0 < s <= 1 for s in shares):
            raise UsageError(
                "An evolution needs 4 genomes and 1 generation or more, and shares above 0 and up "
                f"to 1; asked for {self}."
            )


def evolve(
    sizes: Sequence[int], evaluate: Evaluate, limit: float, options: Evolution | None = None
) -> list[Genome]:
    """Genomes whose cost is within `limit`, the lowest loss first; empty where none is found.

    `sizes` are the number of choices of each axis. Genomes beyond the limit are not thrown away
    again and again, which would never end where little fits: their genes are lowered, one after the
    other, until they fit. Only the smallest genome can then still be too large, and where it is,
    nothing fits. The same seed gives the same result.
    """
    return _Evolution(tuple(sizes), evaluate, limit, options or Evolution()).run()


class _Evolution:
    """One search: what is known of genomes so far."""

    def __init__(self, sizes: Genome, evaluate: Evaluate, limit: float, options: Evolution) -> None:
        self._sizes = sizes
        self._evaluate = evaluate
        self._limit = limit
        self._options = options
        self._dice = random.Random(options.seed)
        self._known: dict[Genome, tuple[float, float]] = {}

    def run(self) -> list[Genome]:
        smallest = (0,) * len(self._sizes)
        self._learn([smallest])
        if self._known[smallest][0] > self._limit:
            return []
        options = self._options
        largest = tuple(size - 1 for size in self._sizes)
        crowd = [smallest, largest]
        crowd += [self._random() for _ in range(options.population - 2)]
        for _ in range(options.generations):
            crowd = self._best(self._repaired(crowd))
            parents = crowd[: max(2, round(options.parents * options.population))]
            num_mutated = round(options.mutated * options.population)
            children = [self._mutant(self._dice.choice(parents)) for _ in range(num_mutated)]
            children += [
                self._crossed(*self._dice.choices(parents, k=2))
                for _ in range(options.population - num_mutated)
            ]
            crowd = [*parents, *children]
        self._repaired(crowd)
        return self._best(self._known)

    def _learn(self, genomes: Sequence[Genome]) -> None:
        new = list(dict.fromkeys(genome for genome in genomes if genome not in self._known))
        if new:
            self._known.update(zip(new, self._evaluate(new), strict=True))

    def _repaired(self, genomes: Sequence[Genome]) -> list[Genome]:
        """The genomes, each with genes lowered until it fits; evaluated round by round."""
        fitting, waiting = list[Genome](), list(genomes)
        while waiting:
            self._learn(waiting)
            fitting += [genome for genome in waiting if self._known[genome][0] <= self._limit]
            waiting = [
                self._lowered(genome)
                for genome in waiting
                if self._known[genome][0] > self._limit and any(genome)
            ]
        return fitting

    def _best(self, genomes: Sequence[Genome] | dict[Genome, tuple[float, float]]) -> list[Genome]:
        fitting = {genome for genome in genomes if self._known[genome][0] <= self._limit}
        return sorted(fitting, key=lambda genome: (self._known[genome][::-1], genome))

    def _random(self) -> Genome:
        return tuple(self._dice.randrange(size) for size in self._sizes)

    def _lowered(self, genome: Genome) -> Genome:
        axis = self._dice.choice([axis for axis, gene in enumerate(genome) if gene])
        return (*genome[:axis], genome[axis] - 1, *genome[axis + 1 :])

    def _mutant(self, genome: Genome) -> Genome:
        rate = self._options.mutation_rate
        return tuple(
            self._dice.randrange(size) if self._dice.random() < rate else gene
            for gene, size in zip(genome, self._sizes, strict=True)
        )

    def _crossed(self, one: Genome, other: Genome) -> Genome:
        return tuple(self._dice.choice(pair) for pair in zip(one, other, strict=True))
