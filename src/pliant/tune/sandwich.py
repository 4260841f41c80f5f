"""Which shapes a step tunes: the sandwich of the full, some random and the smallest shape.

The rule is that of slimmable networks (arXiv 1903.05134), as AmoebaLLM (arXiv 2411.10606) uses it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pliant.shape import ShapeSpace, SubnetShape


@dataclass(frozen=True)
class NamedShape:
    """A shape under the name by which logs and tables speak of it, such as `d3-w0.5`."""

    name: str
    shape: SubnetShape


#: The shapes of a step, by its number; the first of them teaches the others.
Sampler = Callable[[int], tuple[NamedShape, ...]]


def named_shapes(space: ShapeSpace) -> tuple[NamedShape, ...]:
    """All shapes of a space under their addresses, the largest first and the smallest last."""
    return tuple(NamedShape(name, shape) for name, shape in space.named())


@dataclass(frozen=True)
class Sandwich:
    """The full shape, `random_shapes` drawn without repetition from between, and the smallest.

    A pure function of the seed and the step: resumed runs and all workers of one draw the same.
    A space too small for that gives all it has.
    """

    space: ShapeSpace
    random_shapes: int = 2
    seed: int = 0

    def __call__(self, step: int) -> tuple[NamedShape, ...]:
        """The shapes of a step."""
        shapes = self._shapes
        if len(shapes) == 1:
            return shapes
        between = shapes[1:-1]
        count = min(self.random_shapes, len(between))
        random = np.random.default_rng([self.seed, step])
        drawn = sorted(int(place) for place in random.permutation(len(between))[:count])
        return (shapes[0], *(between[place] for place in drawn), shapes[-1])

    @cached_property
    def _shapes(self) -> tuple[NamedShape, ...]:
        # A ranking of hundreds of units is walked for each shape of it: once, not at every step.
        return named_shapes(self.space)


def only(shape: NamedShape) -> Sampler:
    """The sampler that tunes one shape and no other."""
    return lambda step: (shape,)
