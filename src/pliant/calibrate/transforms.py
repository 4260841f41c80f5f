"""`TRANSFORMS`: other weights of the same function, before a codec sees them.

A transform gives a dense model of the same logits under every cut, so any codec and any rounding
follows it. `rotated` looks at no text. `scaled` chooses factors so that rounding to nearest harms
the outputs of a block least: a column whose inputs are large should be rounded finely, and within a
group of columns that share a scale the larger weight is. So columns are multiplied by a power of
the size of their inputs (AWQ, arXiv 2306.00978), the power by search, and what feeds them is
divided.
Shape suffixes: O rows, I columns, G KV groups, N heads of a group, H entries of a head.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from pliant.bits import UniformCodec
from pliant.calibrate.moments import MomentStream
from pliant.calibrate.sensitivity import decode_matrix
from pliant.models import Supernet
from pliant.models.equivalence import Scaling, copied, rotated, scale_block

#: Powers tried; 1 would make all columns alike after scaling.
_POWERS = (0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75)
#: Plane counts whose error is looked at, each relative to that without scaling.
_LEVELS = (2, 3, 4)
#: Inputs smaller than this share of the largest count as this.
_SMALLEST = 1e-3

Float = NDArray[np.float64]


def scaled(supernet: Supernet, tokens_BT: torch.Tensor) -> Supernet:
    """The same function in weights that round better, by moments of the calibration windows."""
    result = copied(supernet)
    stream = MomentStream(supernet, tokens_BT)
    spec = supernet.spec
    for block in range(spec.num_blocks):
        size = {name: np.sqrt(moment_II.diagonal())
                for name, moment_II in stream.advance(block).items()}  # fmt: skip
        # The heads of a group read one value, so they share its factors.
        size_GNH = size["o"].reshape(spec.num_groups, spec.heads_per_group, spec.head_dim)
        value_GH = np.sqrt(np.square(size_GNH).mean(axis=1))
        shared_I = np.repeat(value_GH[:, None], spec.heads_per_group, axis=1).reshape(-1)
        weights = {name: weight.double().numpy()
                   for name, weight in supernet.block_weights(block).items()}  # fmt: skip
        powers = {
            "q": _best_power([weights[name] for name in ("q", "k", "v")], size["q"], size["q"]),
            "gate": _best_power([weights["gate"], weights["up"]], size["gate"], size["gate"]),
            "o": _best_power([weights["o"]], shared_I, size["o"]),
            "down": _best_power([weights["down"]], size["down"], size["down"]),
        }
        scaling = Scaling(
            *(
                torch.from_numpy(_factors(bases, powers[name]))
                for name, bases in (
                    ("q", size["q"]), ("gate", size["gate"]), ("o", value_GH),
                    ("down", size["down"]),
                )
            )
        )  # fmt: skip
        scale_block(result, block, scaling)
    return result


def _factors(size: Float, power: float) -> Float:
    """Powers of sizes, 1 in the middle of their range."""
    bounded = np.maximum(size, _SMALLEST * max(float(size.max()), np.finfo(np.float64).tiny))
    factors: Float = bounded**power
    factors /= np.sqrt(factors.max() * factors.min())
    return factors


def _best_power(matrices: list[Float], base_I: Float, size_I: Float) -> float:
    """The power of `base_I` that leaves least error at the outputs, by the diagonal of moments."""
    reference: dict[int, float] = {}
    totals = {}
    codec = UniformCodec()
    for power in _POWERS:
        factor_I = _factors(base_I, power)
        errors = dict.fromkeys(_LEVELS, 0.0)
        for weight_OI in matrices:
            stored = codec.encode((weight_OI * factor_I).astype(np.float32))
            for level in _LEVELS:
                rounded_OI = decode_matrix(codec, stored, level) / factor_I
                errors[level] += float(np.square((rounded_OI - weight_OI) * size_I).sum())
        reference = reference or {level: error or 1.0 for level, error in errors.items()}
        totals[power] = sum(errors[level] / reference[level] for level in _LEVELS)
    return min(totals, key=lambda power: totals[power])


#: `transform(dense, tokens_BT)` gives a model of the same function; the dense one stays as it is.
Transform = Callable[[Supernet, torch.Tensor], Supernet]
TRANSFORMS: dict[str, Transform] = {
    "none": lambda supernet, tokens_BT: supernet,
    "scaled": scaled,
    "rotated": lambda supernet, tokens_BT: rotated(supernet),
    "scaled, rotated": lambda supernet, tokens_BT: rotated(scaled(supernet, tokens_BT)),
}
