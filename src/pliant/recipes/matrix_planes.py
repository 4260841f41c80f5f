"""How many planes each matrix of a build has, where its codec has no good prefixes to choose from.

ShiftAddLLM (arXiv 2406.05981) ranks matrices by a score of their weights and inputs and cuts the
rank in two. Here every matrix is rounded at each number of planes, what each costs the model is
measured, and the sum of costs is minimized exactly: docs/how_it_works/shift_add.md compares.
"""

from __future__ import annotations

import torch

from pliant.bits import codecs, plane_bytes
from pliant.calibrate import separate_sensitivities
from pliant.measurement import Progress, silent
from pliant.models import Checkpoint, ShapeAdapters, streamed_supernet
from pliant.recipes.build_options import BuildOptions
from pliant.recipes.calibration_text import CalibrationTokens
from pliant.recipes.encoding import separately_encoded
from pliant.recipes.memory_plan import MemoryPlan
from pliant.search import Option, allocate
from pliant.spec import ModelSpec


def matrix_planes(
    source: Checkpoint,
    adapters: ShapeAdapters | None,
    memory: MemoryPlan,
    tokens: CalibrationTokens,
    options: BuildOptions,
    progress: Progress = silent,
) -> dict[str, int]:
    """Planes of each matrix of a block, `options.average_planes` on average over their bytes.

    Empty without such an average. 1 to `options.planes`, with the least sum of what each matrix
    alone costs: KL on windows that rounding does not see. The weights are those of the checkpoint,
    before widths are ordered: file sizes depend on the result, so it has to come first. A build
    that goes on finds it anew, to six digits the same.
    """
    if options.average_planes is None:
        return {}
    codec, counts = codecs[options.codec], range(1, options.planes + 1)
    orders_BT, choices_BT = map(torch.from_numpy, (tokens.orders_BT, tokens.choices_BT))
    supernet = streamed_supernet(source.spec, source.tensor, memory.weights)
    supernet.adapters = adapters
    supernet = supernet.at()
    encoded = separately_encoded(supernet, codec, counts, options.rounding, orders_BT)

    def told(stage: str, done: int, total: int) -> None:
        progress("planes of matrices", done, total)

    costs = separate_sensitivities(supernet, choices_BT, codec, encoded, told)
    sizes = block_plane_bytes(supernet.spec)
    offered = {
        name: [Option(count, count * size, costs[name][count]) for count in counts]
        for name, size in sizes.items()
    }
    return allocate(offered, int(options.average_planes * sum(sizes.values())))


def block_plane_bytes(spec: ModelSpec) -> dict[str, int]:
    """Bytes of one plane of each matrix of a block, by its name."""
    return {
        name: plane_bytes(*shape)
        for name, shape in spec.tensors().items()
        if name.startswith("blocks.") and len(shape) == 2
    }


def bytes_left_out(spec: ModelSpec, options: BuildOptions) -> int:
    """Bytes of planes that an average leaves out of an artifact of `options.planes` planes."""
    if options.average_planes is None:
        return 0
    missing = options.planes - options.average_planes
    return int(missing * sum(block_plane_bytes(spec).values()))
