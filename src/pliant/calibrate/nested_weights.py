"""`NestedWeights`: matrices of nested codes that learn by gradient, all prefixes from one latent.

A latent position `p` in units of the scale `s0` it began with, and a factor `r` of that scale for
each row and group, stand at level k for

    W_k = s0 · r · step · (floor(p / (r · step)) + 0.5)        step = 2^(8 - k), within the codes

Rounding passes the gradient of a position within the codes on as it is, and to the factor what LSQ
(arXiv 1902.08153) gives it: value less position. Shape suffixes: O rows, I columns, G groups, C the
64 columns of a group.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from pliant.bits import GROUP_COLUMNS, MAX_PLANES, num_scale_groups

_HALF_CODES = 2 ** (MAX_PLANES - 1)
#: How far within its step a position begins; fp32 holds positions to 2^-17.
_EDGE = 2.0**-10


class NestedWeights:
    """One matrix on its way from a rounding to a better one.

    `codes_OI` uint8 and `scales_OG` fp16 are where it begins, their first `planes` bits stored;
    `weight_OI` is the dense matrix, `finest` the largest plane count that will be learned.
    `positions_OGC` and `stretch_OG1`, the logarithm of `r`, are what an optimizer moves.
    """

    def __init__(
        self,
        weight_OI: torch.Tensor,
        codes_OI: NDArray[np.uint8],
        scales_OG: NDArray[np.float16],
        planes: int,
        finest: int,
    ) -> None:
        self._shape = weight_OI.shape
        self._finest = finest
        scale_OG1 = torch.from_numpy(scales_OG).to(weight_OI.device).float()[:, :, None]
        self._scale_OG1 = scale_OG1
        # A group of zeros has no scale to be in units of; it stays as it is.
        inverse_OG1 = torch.where(scale_OG1 > 0, 1 / scale_OG1, 0)
        self._dense_OGC = self._grouped(weight_OI.float()) * inverse_OG1
        code_OGC = self._grouped(torch.from_numpy(codes_OI).to(weight_OI.device).float())
        low_OGC = code_OGC - _HALF_CODES
        high_OGC = low_OGC + 2 ** (MAX_PLANES - planes) - _EDGE
        inside_OGC = self._dense_OGC.clamp(low_OGC + _EDGE, high_OGC)
        self.positions_OGC = inside_OGC.requires_grad_()
        self.stretch_OG1 = torch.zeros_like(scale_OG1).requires_grad_()

    def _grouped(self, matrix_OI: torch.Tensor) -> torch.Tensor:
        rows, columns = self._shape
        groups = num_scale_groups(columns)
        padded = functional.pad(matrix_OI, (0, groups * GROUP_COLUMNS - columns))
        return padded.view(rows, groups, GROUP_COLUMNS)

    def at(self, planes: int) -> torch.Tensor:
        """The matrix `[O, I]`, fp32, that `planes` planes stand for; gradients pass."""
        factor_OG1 = self.stretch_OG1.exp()
        value_OGC = cast(torch.Tensor, _Rounded.apply(self.positions_OGC, factor_OG1, planes))
        return (self._scale_OG1 * value_OGC).flatten(1)[:, : self._shape[1]]

    @torch.no_grad()
    def pull(self, share: float) -> None:
        """Move all positions by `share` of their way back to the dense weights.

        What gains nothing returns, so that levels nobody trained stay good.
        """
        self.positions_OGC.lerp_(self._dense_OGC, share)

    @torch.no_grad()
    def codes(self) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
        """Codes uint8 `[O, I]` and scales fp16 `[O, G]`.

        A code keeps the prefix that was learned and lies, within it, nearest to the dense weight.
        """
        scale_OG1 = (self._scale_OG1 * self.stretch_OG1.exp()).half().float()
        largest = float(np.finfo(np.float16).max)
        scale_OG1 = scale_OG1.clamp(max=largest)
        ratio_OG1 = torch.where(scale_OG1 > 0, self._scale_OG1 / scale_OG1, 0)
        width = 2 ** (MAX_PLANES - self._finest)
        prefix_OGC = torch.floor(self.positions_OGC * ratio_OG1 / width)
        most = _HALF_CODES // width
        low_OGC = prefix_OGC.clamp_(-most, most - 1) * width
        code_OGC = torch.floor(self._dense_OGC * ratio_OG1).clamp_(low_OGC, low_OGC + width - 1)
        code_OGC = torch.where(scale_OG1 > 0, code_OGC + _HALF_CODES, 0)
        codes_OI = code_OGC.flatten(1)[:, : self._shape[1]].to(torch.uint8).cpu().numpy()
        return codes_OI, scale_OG1[:, :, 0].half().cpu().numpy()


class _Rounded(torch.autograd.Function):
    """Positions to the midpoints of their steps, in units of the first scale."""

    @staticmethod
    def forward(
        ctx: Any, positions_OGC: torch.Tensor, factor_OG1: torch.Tensor, planes: int
    ) -> torch.Tensor:
        step = float(2 ** (MAX_PLANES - planes))
        most = _HALF_CODES / step
        position_OGC = positions_OGC / factor_OG1
        prefix_OGC = torch.floor(position_OGC / step)
        is_inside_OGC = (prefix_OGC >= -most) & (prefix_OGC < most)
        value_OGC = prefix_OGC.clamp_(-most, most - 1).add_(0.5).mul_(step)
        ctx.save_for_backward(is_inside_OGC, value_OGC - position_OGC * is_inside_OGC)
        return factor_OG1 * value_OGC

    @staticmethod
    def backward(ctx: Any, gradient_OGC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        is_inside_OGC, slope_OGC = ctx.saved_tensors
        slopes_OG1 = (gradient_OGC * slope_OGC).sum(-1, keepdim=True)
        return gradient_OGC * is_inside_OGC, slopes_OG1, None
