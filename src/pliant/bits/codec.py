"""`Codec`: how a matrix becomes nested bit-planes and scales, and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from pliant.bits.feedback import ErrorFeedback
from pliant.bits.layout import (
    CHUNK_BYTES,
    CHUNK_COLUMNS,
    TILE_ROWS,
    num_chunks,
    plane_bytes,
    scale_bytes,
)
from pliant.errors import CheckpointError, UsageError

#: What planes and scales stand for: halves of a scale, or signs with a scale each (format.md). The
#: engine has kernels for each form, so a codec that chooses differently needs no new one.
PlaneForm = Literal["uniform", "signs"]

#: What `Codec.fault` calls scales that no codec may store, and padding that is not zero.
SCALE_FAULT = "a NaN, infinite or negative scale"
PADDING_FAULT = "padding that is not zero"


def require_finite(weight: NDArray[np.float32], name: str) -> None:
    """Raise `CheckpointError` with `name` for weights that are NaN or infinite."""
    if not np.isfinite(weight).all():
        raise CheckpointError(
            f"{name} holds NaN or infinite weights, which no plane can store; "
            "the checkpoint is damaged or its training diverged."
        )


def scale_fault(scales: NDArray[np.uint16]) -> str | None:
    """`SCALE_FAULT` where fp16 scales are NaN, infinite or signed: the format knows one zero."""
    scale = scales.view(np.float16)
    sound = np.isfinite(scale).all() and not np.signbit(scale).any()
    return None if sound else SCALE_FAULT


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

    def checked_prefix(self, planes: int, rows: int | None, columns: int | None) -> tuple[int, int]:
        """Rows and columns asked for, all by default; `UsageError` where more than is stored is."""
        rows = self.rows if rows is None else rows
        columns = self.columns if columns is None else columns
        if not 1 <= planes <= len(self.planes):
            raise UsageError(f"{planes} planes asked for; {len(self.planes)} are stored.")
        if not (1 <= rows <= self.rows and 1 <= columns <= self.columns):
            raise UsageError(
                f"{rows} x {columns} asked for; the matrix is {self.rows} x {self.columns}."
            )
        return rows, columns

    def bits(self, plane: int, rows: int, columns: int) -> NDArray[np.bool_]:
        """The bits of a prefix of one plane, `[rows, columns]`, looked up where `layout` states."""
        byte_OI, bit_I = self._places(rows, columns)
        return cast(NDArray[np.bool_], self.planes[plane][byte_OI] >> bit_I & 1 == 1)

    def codes(self, planes: int, rows: int, columns: int) -> NDArray[np.int32]:
        """The first `planes` bits of each weight of a prefix as a number, `[rows, columns]`."""
        byte_OI, bit_I = self._places(rows, columns)
        code_OI = np.zeros((rows, columns), np.int32)
        for plane in self.planes[:planes]:
            code_OI = 2 * code_OI + (plane[byte_OI] >> bit_I & 1)
        return code_OI

    def _places(self, rows: int, columns: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The byte of each weight in a plane `[rows, columns]`, and its bit there `[columns]`."""
        tile_O1, row_in_tile_O1 = np.divmod(np.arange(rows)[:, None], TILE_ROWS)
        chunk_I, column_in_chunk_I = np.divmod(np.arange(columns), CHUNK_COLUMNS)
        byte_OI = (
            (tile_O1 * num_chunks(self.columns) + chunk_I) * CHUNK_BYTES
            + 4 * row_in_tile_O1
            + column_in_chunk_I % 4
        )
        return byte_OI, column_in_chunk_I // 4

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
    def form(self) -> PlaneForm:
        """What its planes and scales stand for, and so which kernels multiply them."""

    @property
    def nested(self) -> bool:
        """Whether every prefix of planes is chosen to be good; else only all of them together."""

    @property
    def planes(self) -> int:
        """Planes that `encode` makes; of the registered codec, the most it can make, at most 8."""

    def with_planes(self, planes: int) -> Codec:
        """The same codec making another number of planes; `UsageError` outside 1 to its most."""

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

    def fault(self, encoded: EncodedMatrix) -> str | None:
        """What is wrong with the scales of a stored matrix, as "a NaN scale"; None if nothing is.

        Every byte of them is looked at; files come from strangers.
        """


@runtime_checkable
class CompensatedCodec(Codec, Protocol):
    """A codec that can also choose codes by their effect on the output of the matrix."""

    def encode_compensated(
        self, weight_OI: NDArray[np.float32], feedback: ErrorFeedback, name: str = "matrix"
    ) -> EncodedMatrix:
        """As `encode`, rounding columns by `feedback.sweep`; decoded in the same way."""
