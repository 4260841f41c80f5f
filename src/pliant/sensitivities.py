"""`Sensitivities`: what cutting each axis alone costs, and the additive prediction made of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import msgspec

from pliant.errors import UsageError

Key = TypeVar("Key", int, float)


class Sensitivities(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Measured losses (nats per token, one fixed text) with one axis cut and all others full.

    `depth[count]`: `count` blocks kept, as the artifact's depth path chooses them; `width[ratio]`;
    `planes[k]`: `k` planes of every block matrix; `vocabulary_planes[k]`: `k` planes of embedding
    and head. `dense_loss` is the loss with nothing cut. `matrices[name][k]` is KL in nats per token
    of the dense model to the one that reads `k` planes of that matrix alone, by the names of the
    artifact (tied embeddings as embedding and head at once); empty in artifacts of before. Where an
    artifact offers finer cuts, `halves[count]` is the loss of `count` halves of blocks kept and
    `ranked_width[ratio]` that of widths ranked across blocks. `cache[bits]` is the loss with cached
    keys and values of so many bits, without a window; empty where it was not measured.
    """

    dense_loss: float
    depth: dict[int, float]
    width: dict[float, float]
    planes: dict[int, float]
    vocabulary_planes: dict[int, float]
    matrices: dict[str, dict[int, float]] = {}
    halves: dict[int, float] = {}
    ranked_width: dict[float, float] = {}
    cache: dict[int, float] = {}

    def predict(
        self,
        depth: int,
        width: float,
        planes: int,
        vocabulary_planes: int,
        *,
        halves: int | None = None,
        is_ranked: bool = False,
    ) -> float:
        """The loss of a cut of all four axes: the dense loss plus the increase of each axis.

        `halves` kept take the place of `depth`; `is_ranked` widths are ranked across blocks.
        Additive sensitivities ignore that cuts compound, so the prediction orders candidates well
        and is optimistic in absolute terms; that is why the best few are always measured.
        """
        axes = (
            self._increase(self.depth, depth, "blocks kept")
            if halves is None
            else self._increase(self.halves, halves, "halves kept"),
            self._increase(self.ranked_width if is_ranked else self.width, width, "width"),
            self._increase(self.planes, planes, "planes"),
            self._increase(self.vocabulary_planes, vocabulary_planes, "vocabulary planes"),
        )
        return self.dense_loss + sum(axes)

    def cache_increase(self, bits: int) -> float:
        """Nats per token that a cache of `bits` bits adds; 0 where that was not measured."""
        return self.cache.get(bits, self.dense_loss) - self.dense_loss

    def _increase(self, axis: Mapping[Key, float], key: Key, name: str) -> float:
        if key not in axis:
            raise UsageError(
                f"No sensitivity was measured at {key:g} {name}; measured are {sorted(axis)}."
            )
        return axis[key] - self.dense_loss
