"""Tensors of a model one after another as an artifact stores them, rounded as was asked.

Shape suffixes: B sequences, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from pliant.bits import Codec, CompensatedCodec, EncodedMatrix, ErrorFeedback
from pliant.calibrate import SHARED_INPUTS, MomentStream
from pliant.errors import UnsupportedError
from pliant.models import Supernet

Rounding = Literal["feedback", "nearest"]
ROUNDINGS: tuple[Rounding, ...] = get_args(Rounding)

_INPUT_OF = {matrix: shared for shared, matrices in SHARED_INPUTS.items() for matrix in matrices}


def encoded_matrices(
    supernet: Supernet,
    names: Sequence[str],
    codec: Codec,
    rounding: Rounding,
    tokens_BT: torch.Tensor,
) -> Iterator[tuple[str, EncodedMatrix | NDArray[np.float32]]]:
    """The tensors `names`, in the order of the spec: matrices encoded, vectors as fp32.

    With `feedback` the matrices of blocks are rounded on the moments of their inputs, which the
    dense model has on `tokens_BT`; blocks before the first of `names` are run and not looked at,
    so a build that goes on makes the same bytes. Embedding and head are rounded to nearest: their
    rows are read one by one. `UnsupportedError` where the codec cannot.
    """
    if rounding == "nearest":
        for name in names:
            weight = supernet.weights[name].numpy()
            yield name, codec.encode(weight, name) if weight.ndim == 2 else weight
        return
    if not isinstance(codec, CompensatedCodec):
        raise UnsupportedError(
            f"The codec {codec.name} has no error feedback; build with rounding nearest."
        )
    feedback = _BlockFeedback(supernet, tokens_BT)
    for name in names:
        weight = supernet.weights[name].numpy()
        if weight.ndim == 1:
            yield name, weight
        elif name.startswith("blocks."):
            yield name, codec.encode_compensated(weight, feedback.of(name), name)
        else:
            yield name, codec.encode(weight, name)


class _BlockFeedback:
    """Error feedback by the name of a matrix, of one block at a time."""

    def __init__(self, supernet: Supernet, tokens_BT: torch.Tensor) -> None:
        self._supernet = supernet
        self._tokens_BT = tokens_BT
        self._stream: MomentStream | None = None
        self._block = -1
        self._moments: dict[str, NDArray[np.float64]] = {}
        self._last: tuple[str, ErrorFeedback] | None = None

    def of(self, name: str) -> ErrorFeedback:
        """That of a matrix; `q k v` and `gate up` share theirs. Blocks must come in order."""
        _, number, matrix = name.split(".")
        if int(number) != self._block:
            self._go_to(int(number))
        shared = _INPUT_OF[matrix]
        if self._last is None or self._last[0] != shared:
            # Let go of the old factor before the new one is made.
            self._last = None
            self._last = shared, ErrorFeedback.of(self._moments[shared], name)
        return self._last[1]

    def _go_to(self, block: int) -> None:
        self._last = None
        self._moments = {}
        if self._stream is None:
            self._stream = MomentStream(self._supernet, self._tokens_BT)
        for passed in range(self._block + 1, block):
            self._stream.skip(passed)
        self._moments = self._stream.advance(block)
        self._block = block
