"""`RandomWeights`: weights of a spec that lie in memory and mean nothing, to measure engines with.

Speed and memory do not depend on the values of weights, so a probe needs no model.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pliant.bits import MAX_PLANES, plane_bytes, scale_bytes
from pliant.spec import ModelSpec

#: Random bytes that all planes are pieces of: beyond any pattern a processor could learn.
_POOL_BYTES = 2**22


class RandomWeights:
    """A `WeightSource` with random planes of every matrix of `spec`; equal seeds give equal bits.

    Scales keep activations about as large as in a trained model. `planes` at most are held.
    """

    def __init__(self, spec: ModelSpec, planes: int = MAX_PLANES, seed: int = 0) -> None:
        self.spec = spec
        self._planes: dict[str, list[NDArray[np.uint8]]] = {}
        self._scales: dict[str, NDArray[np.uint16]] = {}
        self._vectors: dict[str, NDArray[np.float32]] = {}
        draw = np.random.default_rng(seed)
        largest = max(plane_bytes(*shape) for shape in spec.tensors().values() if len(shape) == 2)
        pool = np.frombuffer(draw.bytes(min(_POOL_BYTES, largest)), np.uint8)
        # Codes are even over 256 steps, so their deviation is 256 / sqrt(12) of a step.
        scale = np.float16(0.02 * np.sqrt(12) / 256).view(np.uint16)
        for name, shape in spec.tensors().items():
            if len(shape) == 1:
                fill = 0.0 if name.endswith(".bias") else 1.0
                self._vectors[name] = np.full(shape, fill, np.float32)
                continue
            rows, columns = shape
            size = plane_bytes(rows, columns)
            self._planes[name] = [_piece(pool, draw, size) for _ in range(planes)]
            self._scales[name] = np.full(scale_bytes(rows, columns) // 2, scale, np.uint16)

    def planes(self, name: str) -> list[NDArray[np.uint8]]:
        """All planes of a matrix, most significant first."""
        return self._planes[name]

    def scales(self, name: str) -> NDArray[np.uint16]:
        """fp16 bits of the scales of a matrix."""
        return self._scales[name]

    def vector(self, name: str) -> NDArray[np.float32]:
        """A norm weight (ones) or bias (zeros)."""
        return self._vectors[name]


def _piece(pool: NDArray[np.uint8], draw: np.random.Generator, size: int) -> NDArray[np.uint8]:
    """`size` bytes of the pool from a random place on, in memory of their own."""
    begin = int(draw.integers(len(pool)))
    repeats = (begin + size) // len(pool) + 1
    return np.tile(pool, repeats)[begin : begin + size].copy()
