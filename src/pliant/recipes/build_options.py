"""`BuildOptions`: everything that decides the bytes of an artifact, beside model and text."""

from __future__ import annotations

from dataclasses import dataclass

from pliant.bits import codecs, refused_codecs
from pliant.errors import UnsupportedError, UsageError
from pliant.recipes.encoding import ROUNDINGS, Rounding
from pliant.recipes.finer import HALF_METHODS
from pliant.shape import DEPTH_METHODS, WIDTH_METHODS, DepthMethod, WidthMethod


@dataclass(frozen=True)
class BuildOptions:
    """Everything that decides the bytes of an artifact, beside checkpoint and calibration text.

    Every matrix has `planes` planes; with `average_planes` each matrix of a block has a number of
    its own, 1 to `planes`, so many on average, which is for codecs whose prefixes are not good.
    `rounding` is `feedback`, where the errors of weights make up for each other on the calibration
    text, `reconstruct`, where each block learns from there to give what the dense block gives, or
    `nearest`, which looks at no text. `min_blocks` is the fewest blocks a depth path keeps (None:
    half of them). `finer` searches halves of blocks too, by that method, and ranks widths across
    blocks: more cuts, which stock formats do not hold. `windows` windows of `window_tokens` tokens
    each (at most the context) find the orders and moments, as many others choose depths and
    measure sensitivities.
    """

    planes: int = 8
    average_planes: float | None = None
    codec: str = "uniform"
    rounding: Rounding = "feedback"
    width_method: WidthMethod = "flap"
    depth_methods: tuple[DepthMethod, ...] = ("amoeba", "greedy")
    min_blocks: int | None = None
    protect_first: int = 0
    protect_last: int = 1
    finer: DepthMethod | None = None
    windows: int = 64
    window_tokens: int = 256
    seed: int = 0

    def depth_limits(self, num_blocks: int) -> tuple[int, int, int]:
        """Fewest blocks kept, and first and last ones protected, in a model of `num_blocks`."""
        first, last = (min(n, num_blocks) for n in (self.protect_first, self.protect_last))
        fewest = self.min_blocks or max(num_blocks // 2, 1)
        return max(fewest, min(num_blocks, first + last)), first, last

    def __post_init__(self) -> None:
        if not 1 <= self.planes <= 8:
            raise UsageError(f"{self.planes} planes asked for; an artifact stores 1 to 8.")
        if self.codec in refused_codecs:
            raise UnsupportedError(refused_codecs[self.codec])
        if self.codec not in codecs:
            raise UsageError(f"There is no codec {self.codec!r}; choose one of {sorted(codecs)}.")
        codecs[self.codec].with_planes(self.planes)
        self._check_average()
        if self.rounding not in ROUNDINGS:
            raise UsageError(f"There is no rounding {self.rounding!r}; there are {ROUNDINGS}.")
        if self.width_method not in WIDTH_METHODS:
            raise UsageError(
                f"There is no width score {self.width_method!r}; there are {WIDTH_METHODS}."
            )
        if not self.depth_methods or not set(self.depth_methods) <= set(DEPTH_METHODS):
            raise UsageError(f"Depth methods {self.depth_methods}; choose among {DEPTH_METHODS}.")
        if self.finer is not None and self.finer not in HALF_METHODS:
            raise UsageError(
                f"Halves cannot be searched by {self.finer!r}; choose among {HALF_METHODS}."
            )
        if self.windows < 1 or self.window_tokens < 2:
            raise UsageError("Calibration needs one window of two tokens at least.")

    def _check_average(self) -> None:
        if self.average_planes is None:
            return
        if codecs[self.codec].nested:
            raise UsageError(
                f"The codec {self.codec} stores planes of which every prefix is good, so `fit` "
                "chooses how many each matrix reads; averages are for shift-add."
            )
        if not 1 <= self.average_planes <= self.planes:
            raise UsageError(
                f"{self.average_planes:g} planes on average asked for; a matrix has 1 to "
                f"{self.planes}."
            )
