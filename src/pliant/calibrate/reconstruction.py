"""Block-wise reconstruction: codes and scales learned so that a block's output stays what it was.

Error feedback looks at one matrix and one moment of its inputs. Here the seven matrices of a block
are moved together, by gradient, until what the block makes of the calibration text is near to what
the dense block makes of it (AutoRound, arXiv 2309.05516; OmniQuant, arXiv 2308.13137;
EfficientQAT, arXiv 2407.11062). Ours serve several levels at once: the loss is

    sum over levels k of  weight_k · |block_k(h_k) - block(h)|² / (what it was before learning)

and calibration is sequential: `h_k` left the blocks before as level k rounds them, `h` the dense
ones. Shape suffixes: B sequences, T tokens, D hidden size, O rows, I columns, G groups.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pliant.bits import num_scale_groups
from pliant.calibrate.loss import BATCH_SIZE, calibration_tokens, embed, run_block
from pliant.calibrate.nested_weights import NestedWeights
from pliant.errors import DataError
from pliant.models import Supernet
from pliant.shape import SubnetShape
from pliant.spec import BLOCK_MATRICES, ModelSpec

#: Levels that are learned and the weight of each; finer ones follow from staying near the dense
#: weights. Measured on three models (docs/how_it_works/bits.md).
LEVEL_WEIGHTS = {2: 1.0, 3: 1.2, 4: 1.5}
#: Sequences that a block's error is measured on before and after.
_MEASURED = 16
#: Codes that a position moves in the first steps, and the relative change of a scale.
_POSITION_RATE, _SCALE_RATE = 2.0, 0.01
#: Share of the way back to the dense weights in the first steps.
_PULL = 0.02

Codes = tuple[NDArray[np.uint8], NDArray[np.float16]]


@dataclass(frozen=True)
class ReconstructionOptions:
    """How long each block is learned: steps, each of one level in turn, and their sequences."""

    steps: int = 240
    sequences: int = 2
    seed: int = 0


@dataclass(frozen=True)
class BlockError:
    """The error of a block's output relative to its dense output, by level: before and after.

    Relative: mean square of the difference over the mean square of what the block adds.
    """

    before: dict[int, float]
    after: dict[int, float]


def learned_levels(planes: int) -> tuple[int, ...]:
    """The plane counts learned where `planes` are stored."""
    return tuple(level for level in LEVEL_WEIGHTS if level <= planes) or (planes,)


class BlockReconstruction:
    """Hidden states of the calibration text, dense and at each level, and the block they are at.

    Blocks come in order: `learn` one, store what it gives, and `advance` by what was stored, so
    that a job that was stopped comes to the same states by advancing alone. Holds the hidden states
    once for each level and twice dense; the supernet needs the weights of one block at a time.
    """

    def __init__(
        self,
        supernet: Supernet,
        tokens_BT: torch.Tensor,
        planes: int,
        options: ReconstructionOptions | None = None,
    ) -> None:
        tokens_BT = calibration_tokens(supernet, tokens_BT)
        self._supernet = supernet
        self._options = options or ReconstructionOptions()
        self.levels = learned_levels(planes)
        self._planes = planes
        self._dense_BTD = embed(supernet, tokens_BT, BATCH_SIZE)
        self._rounded_BTD = {level: self._dense_BTD.clone() for level in self.levels}

    def learn(self, block: int, start: Mapping[str, Codes]) -> tuple[dict[str, Codes], BlockError]:
        """Better codes and scales of block `block` than those it starts with.

        `start` holds codes uint8 `[O, I]` and scales fp16 `[O, G]` by the name of the matrix within
        the block. Where learning does not lower the loss, they are given back. `DataError` where
        the hidden states are not finite.
        """
        target_BTD = run_block(self._supernet, block, self._dense_BTD, BATCH_SIZE)
        prefix = f"blocks.{block}."
        matrices = {
            name: NestedWeights(
                self._supernet.weights[prefix + name], *codes, self._planes, max(self.levels)
            )
            for name, codes in start.items()
        }
        before = self._errors(block, matrices, target_BTD)
        if not all(map(math.isfinite, before.values())):
            raise DataError(
                f"The hidden states of block {block} on the calibration text are not finite; "
                "the checkpoint is damaged, or give another calibration text."
            )
        self._descend(block, matrices, target_BTD, before)
        after = self._errors(block, matrices, target_BTD)
        if not self._loss(after, before) < self._loss(before, before):
            return dict(start), BlockError(before, before)
        learned = {name: matrix.codes() for name, matrix in matrices.items()}
        return learned, BlockError(before, after)

    def advance(self, block: int, decoded: Mapping[int, Mapping[str, torch.Tensor]]) -> None:
        """Carry all hidden states through a block; `decoded[level]` are its stored matrices."""
        for level, hidden_BTD in self._rounded_BTD.items():
            rounded = self._overlay(block, decoded[level])
            run_block(rounded, block, hidden_BTD, BATCH_SIZE, out=hidden_BTD)
        run_block(self._supernet, block, self._dense_BTD, BATCH_SIZE, out=self._dense_BTD)

    def _descend(
        self,
        block: int,
        matrices: Mapping[str, NestedWeights],
        target_BTD: torch.Tensor,
        before: Mapping[int, float],
    ) -> None:
        """Adam (arXiv 1412.6980) with rates that fall as half a cosine."""
        options = self._options
        generator = torch.Generator().manual_seed(options.seed * 1_000_003 + block)
        rates = _POSITION_RATE, _SCALE_RATE
        optimizer = torch.optim.Adam(
            [
                {"params": [matrix.positions_OGC for matrix in matrices.values()]},
                {"params": [matrix.stretch_OG1 for matrix in matrices.values()]},
            ],
            betas=(0.9, 0.95),
        )
        for step in range(options.steps):
            share = 0.5 * (1 + math.cos(math.pi * step / options.steps))
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * share
            drawn = torch.randperm(len(target_BTD), generator=generator)[: options.sequences]
            optimizer.zero_grad()
            # One level at a time: Adam's means add them up, and a step costs a third.
            level = self.levels[step % len(self.levels)]
            loss = self._level_error(block, matrices, level, target_BTD, drawn)
            # An error of 0 cannot be made smaller.
            scale = LEVEL_WEIGHTS.get(level, 1.0) / (before[level] or 1.0)
            (loss * scale).backward()
            optimizer.step()
            for matrix in matrices.values():
                matrix.pull(_PULL * share)

    def _errors(
        self, block: int, matrices: Mapping[str, NestedWeights], target_BTD: torch.Tensor
    ) -> dict[int, float]:
        """The relative error of each level on the first sequences."""
        drawn = torch.arange(min(_MEASURED, len(target_BTD)))
        with torch.no_grad():
            return {
                level: float(self._level_error(block, matrices, level, target_BTD, drawn))
                for level in self.levels
            }

    def _level_error(
        self,
        block: int,
        matrices: Mapping[str, NestedWeights],
        level: int,
        target_BTD: torch.Tensor,
        drawn: torch.Tensor,
    ) -> torch.Tensor:
        rounded = self._overlay(block, {name: m.at(level) for name, m in matrices.items()})
        target_BTD = target_BTD[drawn]
        output_BTD = rounded.block(block, self._rounded_BTD[level][drawn])
        added = (target_BTD - self._dense_BTD[drawn]).square().mean()
        return (output_BTD - target_BTD).square().mean() / added.clamp_min(1e-30)

    def _loss(self, errors: Mapping[int, float], before: Mapping[int, float]) -> float:
        return sum(
            LEVEL_WEIGHTS.get(level, 1.0) * error / (before[level] or 1.0)
            for level, error in errors.items()
        )

    def _overlay(self, block: int, matrices: Mapping[str, torch.Tensor]) -> Supernet:
        """The block's weights with these matrices in place of the dense ones."""
        prefix = f"blocks.{block}."
        weights = {prefix + name: w for name, w in self._supernet.block_weights(block).items()}
        weights |= {prefix + name: matrix for name, matrix in matrices.items()}
        return Supernet(self._supernet.spec, weights, self._supernet.shape)


def reconstruction_bytes(spec: ModelSpec, length: int, options: ReconstructionOptions) -> int:
    """Most bytes that learning one block takes beside the weights and all hidden states.

    Of each weight: position, dense position, gradient, two moments of Adam, and of one level value,
    slope, mask, matrix and two passing copies; of the activations of a step what a backward pass
    keeps of one level.
    """
    weights = sum(
        math.prod(spec.matrix_shape(matrix, spec.num_groups, spec.ffn_size))
        for matrix in BLOCK_MATRICES
    )
    queries = spec.num_heads * spec.head_dim
    row = 12 * spec.hidden_size + 10 * queries + 8 * spec.ffn_size
    tokens = max(options.sequences * length, BATCH_SIZE * length // 2)
    scores = 4 * spec.num_heads * length
    return 4 * (12 * weights + tokens * (row + scores))


def random_block(spec: ModelSpec, generator: torch.Generator) -> Supernet:
    """A model whose first block alone has weights, random ones, to be timed."""
    shapes = spec.block_tensors(spec.num_groups, spec.ffn_size)
    weights = {
        f"blocks.0.{name}": torch.randn(shape, generator=generator) * shape[-1] ** -0.5
        for name, shape in shapes.items()
    }
    return Supernet(spec, weights, SubnetShape.full(spec))


def reconstruction_seconds(
    spec: ModelSpec, sequences: int, length: int, planes: int, options: ReconstructionOptions
) -> float:
    """Seconds that learning all blocks will take here: one step is timed on random weights.

    Beside the steps, hidden states are carried through each block at every level, whose forward
    passes take a third of a step for each of its sequences.
    """
    generator = torch.Generator().manual_seed(0)
    model = random_block(spec, generator)
    levels = learned_levels(planes)
    matrices = {}
    for name in BLOCK_MATRICES:
        weight_OI = model.weights[f"blocks.0.{name}"]
        scales = np.full((len(weight_OI), num_scale_groups(weight_OI.shape[1])), 0.05, np.float16)
        codes = np.full(weight_OI.shape, 128, np.uint8)
        matrices[name] = NestedWeights(weight_OI, codes, scales, planes, max(levels))
    hidden_BTD = torch.randn(options.sequences, length, spec.hidden_size, generator=generator)
    taken = math.inf
    for _ in range(2):
        started = time.perf_counter()
        level = {f"blocks.0.{name}": matrix.at(levels[0]) for name, matrix in matrices.items()}
        rounded = Supernet(spec, {**model.weights, **level}, model.shape)
        rounded.block(0, hidden_BTD).square().mean().backward()
        taken = min(taken, time.perf_counter() - started)
    passes = len(levels) + 2 + 2 * len(levels) * min(_MEASURED, sequences) / sequences
    forward = passes * sequences / options.sequences / 3
    return spec.num_blocks * taken * (options.steps + forward)
