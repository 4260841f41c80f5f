"""Tensors of a model one after another as an artifact stores them, rounded as was asked.

Shape suffixes: B sequences, T tokens, O rows, I columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from pliant.bits import Codec, CompensatedCodec, EncodedMatrix, ErrorFeedback, UniformCodec
from pliant.calibrate import (
    SHARED_INPUTS,
    BlockReconstruction,
    MomentStream,
    ReconstructionOptions,
    decode_matrix,
)
from pliant.errors import UnsupportedError
from pliant.models import Supernet
from pliant.spec import BLOCK_MATRICES

Rounding = Literal["reconstruct", "feedback", "nearest"]
ROUNDINGS: tuple[Rounding, ...] = get_args(Rounding)

#: Gives a matrix that an earlier run has stored, by its pliant name.
Stored = Callable[[str], EncodedMatrix]

_INPUT_OF = {matrix: shared for shared, matrices in SHARED_INPUTS.items() for matrix in matrices}


def encoded_matrices(
    supernet: Supernet,
    names: Sequence[str],
    codec: Codec,
    rounding: Rounding,
    tokens_BT: torch.Tensor,
    *,
    stored: Stored | None = None,
    planes: Mapping[str, int] | None = None,
    seed: int = 0,
) -> Iterator[tuple[str, EncodedMatrix | NDArray[np.float32]]]:
    """The tensors `names`, in the order of the spec: matrices encoded, vectors as fp32.

    With `feedback` the matrices of blocks are rounded on the moments of their inputs, which the
    dense model has on `tokens_BT`; with `reconstruct` each block then learns to give what the dense
    block gives, behind the rounded blocks before it. Blocks before the first of `names` are run and
    not looked at, as `stored` gives them, so a build that goes on makes the same bytes. Embedding
    and head are rounded to nearest: their rows are read one by one. Matrices have the planes of
    the codec, or so many as `planes` says. `UnsupportedError` where the codec cannot.
    """

    def with_count(name: str) -> Codec:
        count = (planes or {}).get(name, codec.planes)
        return codec if count == codec.planes else codec.with_planes(count)

    rounder = _rounder(supernet, codec, rounding, tokens_BT, stored, seed, with_count)
    for name in names:
        weight = supernet.weights[name].numpy()
        if weight.ndim == 1:
            yield name, weight
        elif rounder is not None and name.startswith("blocks."):
            yield name, rounder(name)
        else:
            yield name, with_count(name).encode(weight, name)


def _rounder(
    supernet: Supernet,
    codec: Codec,
    rounding: Rounding,
    tokens_BT: torch.Tensor,
    stored: Stored | None,
    seed: int,
    with_count: Callable[[str], Codec],
) -> Callable[[str], EncodedMatrix] | None:
    """What encodes a matrix of a block by its name; None: each weight to nearest."""
    if rounding == "nearest":
        return None
    compensated = _Compensated(supernet, _compensated(codec), tokens_BT)
    if rounding == "feedback":
        return lambda name: compensated.encode(name, _compensated(with_count(name)))
    if not isinstance(codec, UniformCodec):
        raise UnsupportedError(
            f"The codec {codec.name} cannot be learned; build with rounding feedback."
        )
    return _Reconstructed(supernet, codec, tokens_BT, compensated, stored, seed).encode


def separately_encoded(
    supernet: Supernet,
    codec: Codec,
    counts: Sequence[int],
    rounding: Rounding,
    tokens_BT: torch.Tensor,
) -> Callable[[str], dict[int, EncodedMatrix]]:
    """Makes the matrix of a block by its name, rounded anew for each of `counts` planes.

    With error feedback, unless `rounding` is `nearest`. Blocks must be asked for in order.
    """
    compensated = None
    if rounding != "nearest":
        compensated = _Compensated(supernet, _compensated(codec), tokens_BT)

    def encoded(name: str) -> dict[int, EncodedMatrix]:
        made = {count: codec.with_planes(count) for count in counts}
        if compensated is None:
            weight_OI = supernet.weights[name].numpy()
            return {count: one.encode(weight_OI, name) for count, one in made.items()}
        return {n: compensated.encode(name, _compensated(one)) for n, one in made.items()}

    return encoded


def _compensated(codec: Codec) -> CompensatedCodec:
    if not isinstance(codec, CompensatedCodec):
        raise UnsupportedError(
            f"The codec {codec.name} has no error feedback; build with rounding nearest."
        )
    return codec


class _Reconstructed:
    """Matrices of one block at a time, learned together when the first of them is asked for."""

    def __init__(
        self,
        supernet: Supernet,
        codec: UniformCodec,
        tokens_BT: torch.Tensor,
        compensated: _Compensated,
        stored: Stored | None,
        seed: int,
    ) -> None:
        self._codec = codec
        self._start = compensated
        self._stored = stored
        options = ReconstructionOptions(seed=seed)
        self._states = BlockReconstruction(supernet, tokens_BT, codec.planes, options)
        self._block = -1
        self._encoded: dict[str, EncodedMatrix] = {}

    def encode(self, name: str) -> EncodedMatrix:
        """The matrix `name`; blocks must come in order."""
        block = int(name.split(".")[1])
        if block != self._block:
            for passed in range(max(self._block, 0), block):
                self._pass(passed)
            self._learn(block)
            self._block = block
        return self._encoded[name]

    def _pass(self, block: int) -> None:
        """Go through a finished block: the one learned last, or one of an earlier run."""
        names = {matrix: f"blocks.{block}.{matrix}" for matrix in BLOCK_MATRICES}
        if block != self._block:
            assert self._stored is not None, f"block {block} is neither learned nor stored"
            self._encoded = {name: self._stored(name) for name in names.values()}
        decoded = {
            level: {
                matrix: torch.from_numpy(decode_matrix(self._codec, self._encoded[name], level))
                for matrix, name in names.items()
            }
            for level in self._states.levels
        }
        self._states.advance(block, decoded)

    def _learn(self, block: int) -> None:
        names = {matrix: f"blocks.{block}.{matrix}" for matrix in BLOCK_MATRICES}
        start = {
            matrix: self._codec.unpack(self._start.encode(name)) for matrix, name in names.items()
        }
        learned, _ = self._states.learn(block, start)
        self._encoded = {
            names[matrix]: self._codec.assemble(*codes) for matrix, codes in learned.items()
        }


class _Compensated:
    """Matrices by error feedback, with the moments of one block at a time."""

    def __init__(
        self, supernet: Supernet, codec: CompensatedCodec, tokens_BT: torch.Tensor
    ) -> None:
        self._supernet = supernet
        self._codec = codec
        self._tokens_BT = tokens_BT
        self._stream: MomentStream | None = None
        self._block = -1
        self._moments: dict[str, NDArray[np.float64]] = {}
        self._last: tuple[str, ErrorFeedback] | None = None

    def encode(self, name: str, codec: CompensatedCodec | None = None) -> EncodedMatrix:
        """The matrix `name` by `codec`, by default that of all; blocks must come in order."""
        weight_OI = self._supernet.weights[name].numpy()
        return (codec or self._codec).encode_compensated(weight_OI, self._feedback(name), name)

    def _feedback(self, name: str) -> ErrorFeedback:
        """That of a matrix; `q k v` and `gate up` share theirs."""
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
