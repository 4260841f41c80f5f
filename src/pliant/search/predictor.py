"""`LossPredictor`: what a cut of several axes at once costs, learnt from a few dozen measured ones.

Shape suffixes: N measured subnets, M asked ones, A axes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from pliant.errors import UsageError
from pliant.sensitivities import Sensitivities
from pliant.shape import SubnetShape
from pliant.spec import ModelSpec
from pliant.subnet import Subnet

Array = NDArray[np.float64]

#: Fewer measured subnets than this teach nothing that the sensitivities do not know.
MIN_MEASURED = 8
#: Of the log of the loss that the costliest axis of a cut adds alone: what the whole cut adds at
#: least. Tuned cuts lose less than their axes, which are measured at the dense shape, say.
LEAST_SHARE = 0.5

#: What the axes of a subnet cost by themselves: log of the loss over the dense loss, one for each.
Increases = Callable[[Subnet], Sequence[float]]


class Kernel(msgspec.Struct, frozen=True, kw_only=True):
    """How alike what two subnets cost beyond the sum of their axes is.

    `linear` scales errors of the axes themselves, `product` cuts that compound (degree two),
    `local` anything smooth over `length`, `noise` what no feature explains; all are deviations of
    the log of the loss.
    """

    linear: float
    product: float
    local: float
    length: float
    noise: float

    def between(self, x_NA: Array, y_MA: Array) -> Array:
        """Covariances `[N, M]`, without noise."""
        inner_NM = x_NA @ y_MA.T
        distance_NM = np.square(x_NA[:, None] - y_MA[None]).sum(axis=2)
        return np.asarray(
            self.linear**2 * inner_NM
            + self.product**2 * np.square(inner_NM)
            + self.local**2 * np.exp(-0.5 * distance_NM / self.length**2)
        )


#: What is tried; the one under which the measured losses are likeliest is taken.
KERNELS = tuple(
    Kernel(linear=linear, product=product, local=local, length=length, noise=noise)
    for linear, product, local, length, noise in itertools.product(
        (0.01, 0.05, 0.2), (0.03, 0.1, 0.5), (0.01, 0.05, 0.2), (0.15, 0.4), (0.002, 0.005, 0.02)
    )
)


class LossPredictor:
    """A Gaussian process (Rasmussen and Williams 2006) on top of additive sensitivities.

    A subnet is described by what each of its axes costs alone, in logs of the loss over the dense
    loss; the additive prediction is the prior mean. What measured subnets cost beyond it is learnt:
    with none near by, a prediction falls back to the additive one. The kernel is the one under
    which the measured losses are likeliest, so that nothing has to be set. Far from all that was
    measured its products know no bound, so a prediction is at least `LEAST_SHARE` of what the
    costliest axis costs alone.
    """

    def __init__(self, increases: Increases, measured: Mapping[Subnet, float]) -> None:
        """`measured` are losses over the dense loss, 1 for nothing lost, in any one unit.

        Raises `UsageError` for fewer than `MIN_MEASURED` that are finite and above 0.
        """
        usable = {net: loss for net, loss in measured.items() if np.isfinite(loss) and loss > 0}
        if len(usable) < MIN_MEASURED:
            raise UsageError(
                f"A predictor needs {MIN_MEASURED} measured subnets with a finite loss or more; "
                f"{len(usable)} of {len(measured)} are there."
            )
        self._increases = increases
        self._x_NA = self._described(list(usable))
        excess_N = np.log(np.array(list(usable.values()))) - additive(self._x_NA)
        fits = [_Fit.of(kernel, self._x_NA, excess_N) for kernel in KERNELS]
        self._fit = max(fits, key=lambda fit: fit.likelihood)

    @property
    def kernel(self) -> Kernel:
        """The kernel that was chosen."""
        return self._fit.kernel

    @property
    def error(self) -> float:
        """Root mean square of the leave-one-out errors, in logs of the loss: 0.02 is about 2 %."""
        return self._fit.error

    def predict(self, subnets: Sequence[Subnet]) -> Array:
        """The loss over the dense loss of each subnet, `[M]`."""
        x_MA = self._described(subnets)
        across_MN = self._fit.kernel.between(x_MA, self._x_NA)
        learnt_M = additive(x_MA) + across_MN @ self._fit.weights
        return np.asarray(np.exp(np.maximum(learnt_M, LEAST_SHARE * x_MA.max(axis=1))))

    def _described(self, subnets: Sequence[Subnet]) -> Array:
        return np.array([self._increases(subnet) for subnet in subnets], np.float64)


def additive(x_NA: Array) -> Array:
    """The log of the loss if the increases of all axes added up in nats, `[N]`."""
    return np.asarray(np.log(np.maximum(1 + np.expm1(x_NA).sum(axis=1), 1e-3)))


class _Fit(msgspec.Struct, frozen=True):
    """A kernel, its weights of the measured subnets `[N]`, and how well it explains them."""

    kernel: Kernel
    weights: Array
    error: float
    likelihood: float

    @classmethod
    def of(cls, kernel: Kernel, x_NA: Array, excess_N: Array) -> _Fit:
        covariance_NN = kernel.between(x_NA, x_NA) + kernel.noise**2 * np.eye(len(x_NA))
        inverse_NN = np.linalg.inv(covariance_NN)
        weights = inverse_NN @ excess_N
        # Rasmussen and Williams, equation 5.12: what leaving one out would give, without doing it.
        left_out_N = weights / np.diag(inverse_NN)
        error = float(np.sqrt(np.mean(np.square(left_out_N))))
        likelihood = -0.5 * (excess_N @ weights + np.linalg.slogdet(covariance_NN)[1])
        return cls(kernel, weights, error, float(likelihood))


def axis_increases(
    sensitivities: Sensitivities,
    spec: ModelSpec,
    alignment: int,
    at_planes: Callable[[int], Subnet] | None = None,
) -> Increases:
    """What each axis of a subnet costs alone, from the sensitivities of an artifact.

    Depth, width, planes of blocks, planes of the vocabulary, and bits of the cache where they were
    measured. Half blocks and ranked widths have measured points of their own where the artifact
    offers them. Between points it is interpolated: depth goes by the halves kept, width and planes
    by their mean over the kept weights, so that widths that differ and mixed plans have a place
    too. `at_planes` gives the full shape at a number of planes, where matrices may have fewer of
    their own.
    """
    dense, cache = sensitivities.dense_loss, sensitivities.cache
    planes = {
        float(count) if at_planes is None else _mean_planes(at_planes(count)): loss
        for count, loss in sorted(sensitivities.planes.items())
    }
    widths = {
        _mean_width(spec, SubnetShape.uniform(spec, (0,), ratio, alignment)): loss
        for ratio, loss in sorted(sensitivities.width.items())
    }

    def along(axis: Mapping[int, float] | Mapping[float, float], place: float) -> float:
        places = sorted(axis)
        logs = [np.log(max(axis[known], 1e-9) / dense) for known in places]  # type: ignore[index]
        return float(np.interp(place, places, logs))

    def increases(subnet: Subnet) -> Sequence[float]:
        shape = subnet.shape
        by_halves = not shape.has_whole_blocks and sensitivities.halves
        alike = len({*shape.groups} - {0}) <= 1 and len({*shape.neurons} - {0}) <= 1
        by_ranking = not alike and sensitivities.ranked_width
        return (
            along(sensitivities.halves, shape.num_halves)
            if by_halves
            else along(sensitivities.depth, shape.num_halves / 2),
            along(by_ranking or widths, _mean_width(spec, shape)),
            along(planes, _mean_planes(subnet)),
            along(sensitivities.vocabulary_planes, (subnet.bits.embedding + subnet.bits.head) / 2),
            *([along(cache, subnet.bits.cache.bits)] if cache else []),
        )

    return increases


def _mean_width(spec: ModelSpec, shape: SubnetShape) -> float:
    """Kept weights of the kept halves of blocks over all of theirs: 1 where no width is cut."""
    kept = whole = 0
    for groups, neurons in zip(shape.groups, shape.neurons, strict=True):
        kept += spec.block_weights(groups, neurons)
        whole += spec.block_weights(
            spec.num_groups if groups else 0, spec.ffn_size if neurons else 0
        )
    return kept / whole


def _mean_planes(subnet: Subnet) -> float:
    """Planes of a weight of the kept blocks, on average."""
    weights = planes = 0
    for place, block in enumerate(subnet.shape.blocks):
        for cut in subnet.block_matrices(place, block):
            weights += cut.rows * cut.columns
            planes += cut.rows * cut.columns * cut.planes
    return planes / weights
