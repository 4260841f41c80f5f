"""Sensitivities: what each axis of a cut costs alone, measured on held-out tokens.

Shape suffixes: B sequences, T tokens, D hidden size, O rows, I columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from pliant.bits import TILE_ROWS, Codec, EncodedMatrix, num_tiles
from pliant.calibrate.depth import DepthEvaluator
from pliant.calibrate.loss import (
    BATCH_SIZE,
    calibration_tokens,
    embed,
    final_loss,
    mean_loss,
    run_block,
)
from pliant.measurement import Progress, silent
from pliant.models import Supernet
from pliant.sensitivities import Sensitivities
from pliant.shape import CachedEvaluation, Keep, ShapeSpace, SubnetShape, WidthRanking
from pliant.spec import BLOCK_MATRICES

#: Weights decoded at once: the reference decoder needs some 40 bytes for each.
_WEIGHTS_AT_ONCE = 2**20

#: Gives the stored form of a matrix by its pliant name, for example from an artifact's planes.
EncodedSource = Callable[[str], EncodedMatrix]


def measure_sensitivities(
    supernet: Supernet,
    tokens_BT: torch.Tensor,
    blocks_by_depth: Mapping[int, Keep],
    codec: Codec,
    *,
    widths: Sequence[float] | None = None,
    planes: Sequence[int] | None = None,
    vocabulary_planes: Sequence[int] | None = None,
    encoded: EncodedSource | None = None,
    known_depths: Mapping[Keep, float] | None = None,
    half_losses: Mapping[int, float] | None = None,
    ranking: WidthRanking | None = None,
    alignment: int = 64,
    batch_size: int = BATCH_SIZE,
    progress: Progress = silent,
) -> Sensitivities:
    """Loss (nats per token) with one axis cut at a time, on held-out windows `[B, T]`.

    `supernet` is the ordered model, `blocks_by_depth` the depths of its path; `known_depths` are
    losses of keep-vectors already measured on the same tokens. Widths default to those of
    `ShapeSpace`, plane counts to all that the codec makes. `encoded` gives each matrix as stored;
    by default it is encoded here. `half_losses` are those of a path of halves, handed through, and
    with a `ranking` the widths are measured once more, spread over the blocks by it. Hidden states
    of all sequences are held once per plane count.
    """
    spec = supernet.spec
    everything = tuple(range(spec.num_blocks))
    ratios = (
        widths or ShapeSpace.of(spec, {len(everything): everything}, alignment=alignment).widths
    )
    counts = tuple(planes or range(1, codec.planes + 1))
    vocabulary_counts = tuple(vocabulary_planes or range(1, codec.planes + 1))
    bench = _Bench(
        supernet, calibration_tokens(supernet, tokens_BT), codec,
        encoded or _encoder(supernet, codec), batch_size, progress,
        total=1 + len(ratios) * (2 if ranking else 1) + spec.num_blocks + len(vocabulary_counts),
    )  # fmt: skip
    dense_loss, depth_losses = bench.depth_losses(everything, blocks_by_depth, known_depths)
    return Sensitivities(
        dense_loss=dense_loss,
        depth=depth_losses,
        width=bench.width_losses(ratios, alignment),
        planes=bench.plane_losses(counts),
        vocabulary_planes=bench.vocabulary_losses(vocabulary_counts),
        halves=dict(half_losses or {}),
        ranked_width={} if ranking is None else bench.ranked_losses(ratios, ranking),
    )


class _Bench:
    """One model on one text, measured along one axis after the other."""

    def __init__(
        self,
        supernet: Supernet,
        tokens_BT: torch.Tensor,
        codec: Codec,
        encoded: EncodedSource,
        batch_size: int,
        progress: Progress,
        total: int,
    ) -> None:
        self._supernet = supernet
        self._tokens_BT = tokens_BT
        self._codec = codec
        self._encoded = encoded
        self._batch_size = batch_size
        self._progress = progress
        self._done = 0
        self._total = total
        progress("sensitivities", 0, total)

    def depth_losses(
        self,
        everything: Keep,
        blocks_by_depth: Mapping[int, Keep],
        known: Mapping[Keep, float] | None,
    ) -> tuple[float, dict[int, float]]:
        """Loss of the dense model and of each depth."""
        evaluator = DepthEvaluator(self._supernet, self._tokens_BT, self._batch_size)
        evaluate = CachedEvaluation(evaluator, known)
        dense_loss, *losses = evaluate([everything, *blocks_by_depth.values()])
        self._step()
        return dense_loss, dict(zip(blocks_by_depth, losses, strict=True))

    def width_losses(self, ratios: Sequence[float], alignment: int) -> dict[float, float]:
        """Loss of each width at full depth."""
        spec, losses = self._supernet.spec, {}
        for ratio in ratios:
            shape = SubnetShape.uniform(spec, tuple(range(spec.num_blocks)), ratio, alignment)
            losses[float(ratio)] = self._loss(self._supernet, shape)
            self._step()
        return losses

    def ranked_losses(self, ratios: Sequence[float], ranking: WidthRanking) -> dict[float, float]:
        """Loss of each width at full depth, spread over the blocks by a ranking."""
        spec, losses = self._supernet.spec, {}
        for ratio in ratios:
            shape = ranking.shape(spec, SubnetShape.full(spec), ratio)
            losses[float(ratio)] = self._loss(self._supernet, shape)
            self._step()
        return losses

    def plane_losses(self, counts: Sequence[int]) -> dict[int, float]:
        """Loss with every block matrix at each count of planes, embedding and head as they are.

        Block by block, all counts together: one block's planes are in memory, encoded once.
        """
        supernet, size = self._supernet.at(), self._batch_size
        states = {count: embed(supernet, self._tokens_BT, size) for count in counts}
        for block in range(supernet.spec.num_blocks):
            names = [f"blocks.{block}.{matrix}" for matrix in BLOCK_MATRICES]
            stored = {name: self._encoded(name) for name in names}
            for count, hidden_BTD in states.items():
                rounded = supernet.sharing(self._rounded(stored, count).weights)
                run_block(rounded, block, hidden_BTD, size, out=hidden_BTD)
            self._step()
        return {
            count: final_loss(supernet, hidden_BTD, self._tokens_BT)
            for count, hidden_BTD in states.items()
        }

    def vocabulary_losses(self, counts: Sequence[int]) -> dict[int, float]:
        """Loss with embedding and head at each count of planes, blocks as they are."""
        names = ["embedding"] if self._supernet.spec.tied_embeddings else ["embedding", "head"]
        stored = {name: self._encoded(name) for name in names}
        losses = {}
        for count in counts:
            losses[count] = self._loss(self._rounded(stored, count))
            self._step()
        return losses

    def _loss(self, supernet: Supernet, shape: SubnetShape | None = None) -> float:
        return mean_loss(supernet, self._tokens_BT, shape, self._batch_size)

    def _rounded(self, stored: Mapping[str, EncodedMatrix], planes: int) -> Supernet:
        """A supernet that shares all weights but those decoded from `stored`."""
        replaced = {}
        for name, matrix in stored.items():
            weight_OI = torch.from_numpy(decode_matrix(self._codec, matrix, planes))
            dense_OI = self._supernet.weights[name]
            replaced[name] = weight_OI.to(dense_OI.device, dense_OI.dtype)
        weights = Overlay(self._supernet.weights, replaced)
        return self._supernet.sharing(weights)

    def _step(self) -> None:
        self._done += 1
        self._progress("sensitivities", self._done, self._total)


class Overlay(dict[str, torch.Tensor]):
    """Some weights in front of others, looked up when asked for as streamed weights demand."""

    def __init__(self, base: Mapping[str, torch.Tensor], replaced: Mapping[str, torch.Tensor]):
        super().__init__(replaced)
        self._base = base

    def __missing__(self, name: str) -> torch.Tensor:
        return self._base[name]


def decode_matrix(codec: Codec, encoded: EncodedMatrix, planes: int) -> NDArray[np.float32]:
    """`codec.decode` of a whole matrix, a few tiles of rows at a time, fp32 `[O, I]`.

    Of a matrix with fewer than `planes` planes it is what all of them stand for.
    The reference decoder looks every weight up by its place; of a vocabulary of 10^5 words those
    places alone would take gigabytes.
    """
    weight_OI = np.empty((encoded.rows, encoded.columns), np.float32)
    tiles = num_tiles(encoded.rows)
    plane_tile, scale_tile = encoded.planes[0].size // tiles, encoded.scales.size // tiles
    step = max(1, _WEIGHTS_AT_ONCE // (TILE_ROWS * encoded.columns))
    for tile in range(0, tiles, step):
        rows = slice(tile * TILE_ROWS, min((tile + step) * TILE_ROWS, encoded.rows))
        part = EncodedMatrix(
            rows.stop - rows.start,
            encoded.columns,
            [plane[tile * plane_tile : (tile + step) * plane_tile] for plane in encoded.planes],
            encoded.scales[tile * scale_tile : (tile + step) * scale_tile],
        )
        weight_OI[rows] = codec.decode(part, min(planes, len(encoded.planes)))
    return weight_OI


def _encoder(supernet: Supernet, codec: Codec) -> EncodedSource:
    """Encode a matrix of the supernet when it is asked for."""

    def encode(name: str) -> EncodedMatrix:
        weight = supernet.weights[name].detach().float().cpu().numpy()
        return codec.encode(weight, name)

    return encode
