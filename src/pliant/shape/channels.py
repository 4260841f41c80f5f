"""`ChannelStatistics`: what calibration remembers of the inputs of one matrix.

Shape suffixes: O rows of the matrix, I its columns (input channels), N calibration tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pliant.errors import DataError

Float64Array = NDArray[np.float64]
WeightArray = NDArray[np.float32] | NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ChannelStatistics:
    """Moments of each input channel of a matrix over calibration tokens, fp64 `[I]`.

    `deviation` is the sum of squared distances from the mean (Welford's M2), `absolute` the mean of
    |x|. `gradient` is dLoss/dW of the matrix, `[O, I]` (loss in nats per token); only the Taylor
    score needs it and only a backward pass can give it.
    """

    count: int
    mean: Float64Array
    deviation: Float64Array
    absolute: Float64Array
    gradient: WeightArray | None = None

    @classmethod
    def empty(cls, num_channels: int) -> ChannelStatistics:
        """Statistics of no token at all; merging them changes nothing."""
        zeros = np.zeros(num_channels)
        return cls(0, zeros, zeros, zeros)

    @classmethod
    def of(cls, inputs_NI: NDArray[np.floating]) -> ChannelStatistics:
        """Statistics of one batch of inputs `[N, I]`, N tokens."""
        inputs_NI = np.asarray(inputs_NI, dtype=np.float64)
        if not len(inputs_NI):
            return cls.empty(inputs_NI.shape[1])
        mean_I = inputs_NI.mean(axis=0)
        deviation_I = np.square(inputs_NI - mean_I).sum(axis=0)
        return cls(len(inputs_NI), mean_I, deviation_I, np.abs(inputs_NI).mean(axis=0))

    def merge(self, other: ChannelStatistics) -> ChannelStatistics:
        """Statistics of both samples together (Chan, Golub, LeVeque 1979); gradients are left out.

        The result does not depend on how tokens were split into batches, up to fp64 rounding.
        """
        count = self.count + other.count
        if not count:
            return self
        share = other.count / count
        step_I = other.mean - self.mean
        return ChannelStatistics(
            count,
            self.mean + share * step_I,
            self.deviation + other.deviation + self.count * share * np.square(step_I),
            self.absolute + share * (other.absolute - self.absolute),
        )

    def with_gradient(self, gradient_OI: WeightArray) -> ChannelStatistics:
        """The same moments with the gradient of the loss for the matrix, `[O, I]`."""
        return replace(self, gradient=gradient_OI)

    @property
    def variance(self) -> Float64Array:
        """Unbiased variance of each channel; `DataError` for fewer than two tokens."""
        if self.count < 2:
            raise DataError(f"A variance needs 2 tokens or more; calibration saw {self.count}.")
        return self.deviation / (self.count - 1)

    @property
    def norm(self) -> Float64Array:
        """Euclidean norm of each channel over all tokens."""
        norm_I: Float64Array = np.sqrt(self.deviation + self.count * np.square(self.mean))
        return norm_I
