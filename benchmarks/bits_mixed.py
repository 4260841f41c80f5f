"""Mixed bits in `bits.py`: one nested file, its planes dealt out to matrices for a number of bits.

Sensitivities are measured on calibration windows that rounding did not see; the report windows are
never looked at.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from pliant.bits import EncodedMatrix, UniformCodec, plane_bytes, scale_bytes
from pliant.calibrate import decode_matrix, matrix_sensitivities
from pliant.models import Supernet
from pliant.search import Option, allocate

#: Effective bits that peers have: GPTQ and RTN of groups of 64 and 32, and llama.cpp's types.
TARGETS = (2.29, 2.3125, 2.5625, 2.63, 3.07, 3.31, 3.44, 3.6, 4.25, 4.31, 4.5, 5.34, 5.5)


def mixed_models(
    supernet: Supernet,
    choices_BT: torch.Tensor,
    codec: UniformCodec,
    stored: Mapping[str, EncodedMatrix],
) -> Iterator[tuple[float, dict[str, torch.Tensor]]]:
    """Effective bits and decoded matrices for each target that two planes fit into.

    `stored` are the matrices of all blocks; embedding and head stay dense.
    """
    nearest = {name: codec.encode(supernet.weights[name].numpy(), name)
               for name in ("embedding", "head") if name in supernet.weights}  # fmt: skip
    costs = matrix_sensitivities(supernet, choices_BT, codec, {**stored, **nearest}.__getitem__)
    options = {
        name: [Option(planes, matrix_bytes(matrix, planes), cost)
               for planes, cost in costs[name].items()]
        for name, matrix in stored.items()
    }  # fmt: skip
    count = sum(matrix.rows * matrix.columns for matrix in stored.values())
    least = 8 * sum(min(option.num_bytes for option in found) for found in options.values())
    for target in TARGETS:
        if target * count < least:
            continue
        planes = allocate(options, int(target * count / 8))
        used = 8 * sum(matrix_bytes(matrix, planes[name]) for name, matrix in stored.items())
        decoded = {name: torch.from_numpy(decode_matrix(codec, matrix, planes[name]))
                   for name, matrix in stored.items()}  # fmt: skip
        yield used / count, decoded


def matrix_bytes(matrix: EncodedMatrix, planes: int) -> int:
    """Bytes of the first `planes` planes and the scales of a matrix."""
    rows, columns = matrix.rows, matrix.columns
    return planes * plane_bytes(rows, columns) + scale_bytes(rows, columns)
