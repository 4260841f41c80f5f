"""The evolution keeps its limit, finds what an enumeration finds, and ends where nothing fits."""

import itertools
import random
from collections.abc import Sequence

import pytest

from pliant.errors import UsageError
from pliant.search import Evolution, evolve
from pliant.search.evolution import Genome

SIZES = (9, 7, 8, 8)


class Toy:
    """Costs that rise and losses that fall with every gene, with a term that makes axes compete."""

    def __init__(self, seed: int = 0) -> None:
        dice = random.Random(seed)
        self.weights = [dice.uniform(0.5, 2) for _ in SIZES]
        self.asked: list[Genome] = []

    def cost(self, genome: Genome) -> float:
        return sum(weight * gene for weight, gene in zip(self.weights, genome, strict=True))

    def loss(self, genome: Genome) -> float:
        return sum(
            weight / (1 + gene) for weight, gene in zip(self.weights[::-1], genome, strict=True)
        )

    def __call__(self, genomes: Sequence[Genome]) -> list[tuple[float, float]]:
        self.asked += genomes
        return [(self.cost(genome), self.loss(genome)) for genome in genomes]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("limit", [4.0, 12.0, 25.0])
def test_it_comes_close_to_the_best_of_all(seed: int, limit: float) -> None:
    toy = Toy(seed)
    found = evolve(SIZES, toy, limit, Evolution(seed=seed))
    everything = [
        genome for genome in itertools.product(*map(range, SIZES)) if toy.cost(genome) <= limit
    ]
    losses = sorted(map(toy.loss, everything))
    assert all(toy.cost(genome) <= limit for genome in found)
    assert [toy.loss(genome) for genome in found] == sorted(map(toy.loss, found))
    assert toy.loss(found[0]) <= losses[len(losses) // 200]
    # as many random ones that fit are worse, or as good where nearly all were asked
    dice = random.Random(seed)
    drawn = [dice.choice(everything) for _ in range(len(toy.asked))]
    assert toy.loss(found[0]) <= min(map(toy.loss, drawn))


def test_every_genome_is_asked_once_and_seeds_repeat() -> None:
    first, second = Toy(), Toy()
    assert evolve(SIZES, first, 12.0) == evolve(SIZES, second, 12.0)
    assert first.asked == second.asked
    assert len(set(first.asked)) == len(first.asked)


def test_where_nothing_fits_it_ends() -> None:
    assert evolve(SIZES, Toy(), -1.0) == []


def test_where_only_the_smallest_fits_it_is_found() -> None:
    assert evolve(SIZES, Toy(), 0.0) == [(0, 0, 0, 0)]


def test_axes_of_one_choice() -> None:
    assert evolve((1, 1), lambda genomes: [(0.0, 0.0)] * len(genomes), 1.0) == [(0, 0)]


@pytest.mark.parametrize(
    "wrong", [{"population": 3}, {"generations": 0}, {"parents": 0.0}, {"mutation_rate": 1.5}]
)
def test_impossible_options_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="evolution needs"):
        Evolution(**wrong)  # type: ignore[arg-type]
