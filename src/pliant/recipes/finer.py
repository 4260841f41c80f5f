"""What finer cuts need of a build: a path over halves of blocks, widths ranked across blocks."""

from __future__ import annotations

import msgspec
import torch

from pliant.calibrate import find_half_path, find_width_ranking, remeasured_paths
from pliant.measurement import Progress, silent
from pliant.models import Supernet
from pliant.recipes.calibration_text import CalibrationTokens
from pliant.shape import DEPTH_METHODS, DepthMethod, DepthPath, WidthMethod, WidthRanking

#: Searches over halves of blocks; influence is one of whole blocks.
HALF_METHODS = tuple(method for method in DEPTH_METHODS if method != "influence")


class Finer(msgspec.Struct, frozen=True):
    """What was found for finer cuts; nothing where they are not asked for."""

    half_path: DepthPath | None = None
    width_ranking: WidthRanking | None = None


def find_finer(
    ordered: Supernet,
    tokens: CalibrationTokens,
    method: DepthMethod,
    width_method: WidthMethod,
    min_blocks: int,
    *,
    protect_first: int,
    protect_last: int,
    seed: int,
    cache_bytes: int,
    progress: Progress = silent,
) -> Finer:
    """The path of halves by `method`, and the ranking by `width_method`, of a model in order."""
    path = find_half_path(
        ordered, torch.from_numpy(tokens.choices_BT), method, min_blocks,
        protect_first=protect_first, protect_last=protect_last, seed=seed,
        cache_bytes=cache_bytes, progress=progress,
    )  # fmt: skip
    windows_BT = torch.from_numpy(tokens.orders_BT)
    ranking = find_width_ranking(ordered, windows_BT, width_method, seed=seed, progress=progress)
    return Finer(half_path=path, width_ranking=ranking)


def remeasured_finer(ordered: Supernet, choices_BT: torch.Tensor, finer: Finer) -> Finer:
    """The same choices with the losses that this model has, a tuned one for example."""
    path = finer.half_path
    assert path is not None
    paths = remeasured_paths(ordered, choices_BT, {path.method: path}, halves=True)
    return msgspec.structs.replace(finer, half_path=paths[path.method])
