"""`Codec`: how a matrix becomes nested bit-planes and scales, and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from pliant.bits.feedback import ErrorFeedback
from pliant.bits.layout import plane_bytes, scale_bytes


@dataclass(frozen=True, eq=False)
class EncodedMatrix:
    """A matrix `[rows, columns]` as it is stored: planes and scales in the order of `layout`.

    `planes[p]` is uint8 `[plane_bytes(rows, columns)]`, plane 0 the most significant; `scales` is
    uint16 `[scale_bytes(rows, columns) / 2]`, the bits of fp16 numbers. Construction checks these
    sizes (`ValueError`: a codec that breaks them is a bug, never bad input).
    """

    rows: int
    columns: int
    planes: list[NDArray[np.uint8]]
    scales: NDArray[np.uint16]

    def __post_init__(self) -> None:
        plane_shape = (plane_bytes(self.rows, self.columns),)
        for plane in self.planes:
            if plane.dtype != np.uint8 or plane.shape != plane_shape:
                raise ValueError(
                    f"A plane is {plane.dtype}{plane.shape}; a {self.rows} x {self.columns} matrix "
                    f"stores uint8{plane_shape}."
                )
        scale_shape = (scale_bytes(self.rows, self.columns) // 2,)
        if self.scales.dtype != np.uint16 or self.scales.shape != scale_shape:
            raise ValueError(
                f"Scales are {self.scales.dtype}{self.scales.shape}; a {self.rows} x "
                f"{self.columns} matrix stores uint16{scale_shape}."
            )

    @property
    def num_bytes(self) -> int:
        """Bytes stored: all planes and the scales, padding to whole tiles and chunks included."""
        return sum(plane.nbytes for plane in self.planes) + self.scales.nbytes

    @property
    def effective_bits(self) -> float:
        """Stored bits per weight of the matrix, scales and padding included."""
        return 8 * self.num_bytes / (self.rows * self.columns)


class Codec(Protocol):
    """One way of choosing planes and scales; every codec passes `tests/bits/` in the same way."""

    @property
    def name(self) -> str:
        """The name under which artifacts record this codec."""

    @property
    def planes(self) -> int:
        """Planes that `encode` makes, 1 to 8."""

    def with_planes(self, planes: int) -> Codec:
        """The same codec making another number of planes; `UsageError` outside 1 to 8."""

    def encode(self, weight_OI: NDArray[np.float32], name: str = "matrix") -> EncodedMatrix:
        """Planes and scales of a float32 matrix `[O, I]`.

        `name` is used in messages only: NaN or infinity raise `CheckpointError` with it.
        """

    def decode(
        self,
        encoded: EncodedMatrix,
        planes: int,
        rows: int | None = None,
        columns: int | None = None,
    ) -> NDArray[np.float32]:
        """The float32 matrix `[rows, columns]` that the first `planes` planes stand for.

        This is the reference of the kernels: the prefix of rows and columns is read, and of the
        planes nothing beyond the first `planes`. `UsageError` where more is asked than is stored.
        """


@runtime_checkable
class CompensatedCodec(Codec, Protocol):
    """A codec that can also choose codes by their effect on the output of the matrix."""

    def encode_compensated(
        self, weight_OI: NDArray[np.float32], feedback: ErrorFeedback, name: str = "matrix"
    ) -> EncodedMatrix:
        """As `encode`, rounding columns by `feedback.sweep`; decoded in the same way."""
