"""Models of true shapes with random weights, for measurements: speed does not depend on values."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pliant.bits.layout import plane_bytes, scale_bytes
from pliant.spec import ModelSpec


class RandomBits:
    """What an engine reads of an artifact: noise in eight planes, small scales, norms of 1.

    Each matrix has bytes of its own, as in a file, so that it comes from memory where a real one
    would; its planes share them, so `mapped` bytes of more than one plane are not read apart.
    """

    def __init__(self, spec: ModelSpec, *, own_planes: bool = False) -> None:
        self.spec = spec
        self._own_planes = own_planes
        self._bytes: dict[str, NDArray[np.uint8]] = {}

    def planes(self, name: str) -> list[NDArray[np.uint8]]:
        """Eight planes of a matrix."""
        return [self._noise(f"{name}-{plane if self._own_planes else 0}", name)
                for plane in range(8)]  # fmt: skip

    def _noise(self, key: str, name: str) -> NDArray[np.uint8]:
        if key not in self._bytes:
            size = plane_bytes(*self.spec.tensors()[name])
            random = np.random.default_rng(len(self._bytes))
            self._bytes[key] = np.frombuffer(random.bytes(size), np.uint8)
        return self._bytes[key]

    def scales(self, name: str) -> NDArray[np.uint16]:
        """The same small scale everywhere."""
        count = scale_bytes(*self.spec.tensors()[name]) // 2
        return np.full(count, 2e-4, np.float16).view(np.uint16)

    def vector(self, name: str) -> NDArray[np.float32]:
        """Norms that change nothing; no bias."""
        fill = 0 if name.endswith(".bias") else 1
        return np.full(self.spec.tensors()[name], fill, np.float32)


def llama(**sizes: Any) -> ModelSpec:
    """A Llama of these sizes, embeddings tied; `sizes` are fields of `ModelSpec`."""
    head_dim = sizes.pop("head_dim", sizes["hidden_size"] // sizes["num_heads"])
    context = sizes.pop("max_context", 1024)
    return ModelSpec(
        architecture="llama", head_dim=head_dim, max_context=context,
        attention_scale=head_dim**-0.5, tied_embeddings=True, **sizes,
    )  # fmt: skip
