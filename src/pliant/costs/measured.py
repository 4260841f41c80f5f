"""`MeasuredStep`: what was timed on a device, and what it teaches about the device.

A device that was probed keeps its calibrations, corrected by two factors, of the products and of
all else. One that was not is fitted by `transfer.py`. Either way the error is what each
measurement is missed by when it is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from pliant.costs.calibration import TERMS, Calibration, Terms, step_seconds, step_terms
from pliant.costs.device import Device
from pliant.costs.graph import Graph, step_graph
from pliant.costs.least_squares import relative_fit
from pliant.costs.operators import Widths
from pliant.costs.step import Step, prefill_steps
from pliant.costs.transfer import LEAST_SAMPLES, fit_transfer
from pliant.errors import UsageError
from pliant.subnet import Subnet

#: What a file may hold: beyond these it is not a handful of measurements of a language model.
MOST_STEPS, _MOST_TOKENS, _MOST_SECONDS = 1000, 2**17, 1e5
#: Tokens of a chunk of a prompt (runtime/generation.py).
_CHUNK = 128
#: Terms of products; the others are corrected by a factor of their own.
_PRODUCTS = ("product", "tile")
#: How much the factors are pulled to a common one, where 1 is as much as all samples.
_PULL = 0.1


class MeasuredStep(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`seconds` that `tokens` tokens behind `cached` ones took; more than one are a prompt.

    A prompt goes through in chunks of 128 and gives the logits of its last token. `threads` is 0
    where it is not known. Raises `UsageError` for what cannot have been measured.
    """

    subnet: Subnet
    seconds: float
    tokens: int = 1
    cached: int = 0
    threads: int = 0
    cache_bits: int = 16

    def __post_init__(self) -> None:
        if not 0 < self.seconds < _MOST_SECONDS:
            raise UsageError(f"A step took {self.seconds:g} s; give seconds above 0.")
        reach = self.tokens + self.cached
        if min(self.tokens, self.cached + 1) < 1 or self.threads < 0 or reach > _MOST_TOKENS:
            raise UsageError(
                f"A step of {self.tokens} tokens behind {self.cached} with {self.threads} threads "
                f"cannot have been measured; at most {_MOST_TOKENS} tokens in all are read."
            )
        Widths.of_cache(self.cache_bits)

    def parts(self) -> list[tuple[Graph, Step]]:
        """The steps that the engine makes of it, with their graphs."""
        widths = Widths.of_cache(self.cache_bits)
        steps = [Step.decode(self.cached)]
        if self.tokens > 1:
            steps = prefill_steps(self.tokens, _CHUNK, self.cached)
        return [(step_graph(self.subnet, step, widths), step) for step in steps]


@dataclass(frozen=True)
class _Timed:
    """A measurement with its graphs, made once."""

    measured: MeasuredStep
    parts: list[tuple[Graph, Step]]

    @property
    def seconds(self) -> float:
        return self.measured.seconds


def learned(device: Device, steps: Sequence[MeasuredStep]) -> Device:
    """The device as `steps` measured on it make it out to be.

    Of a probed device each calibration is corrected by the steps with its threads (those of
    unknown threads count for the most). Of others the steps with the most threads are fitted: 4 are
    the least, 8 to 12 of different sizes are better. Raises `UsageError` where none can be used.
    """
    if not device.calibrations:
        most = max((item.threads for item in steps), default=0)
        used = [item for item in steps if item.threads == most]
        transfer = fit_transfer(
            [[graph for graph, _ in item.parts()] for item in used],
            [item.seconds for item in used],
        )
        return msgspec.structs.replace(device, transfer=transfer)
    most = max(item.threads for item in device.calibrations)
    timed = [_Timed(item, item.parts()) for item in steps]
    calibrations = []
    for calibration in device.calibrations:
        own = [item for item in timed if (item.measured.threads or most) == calibration.threads]
        calibrations.append(_corrected(calibration, own) if own else calibration)
    if calibrations == list(device.calibrations):
        known = ", ".join(str(item.threads) for item in device.calibrations)
        raise UsageError(
            f"No step was measured with the threads that {device.name} was probed with ({known}); "
            "measure with one of these."
        )
    return msgspec.structs.replace(device, calibrations=tuple(calibrations))


def _corrected(calibration: Calibration, timed: Sequence[_Timed]) -> Calibration:
    """The calibration with both factors; errors are those of measurements left out in turn."""
    sizes_N2 = np.array([_sizes(item, calibration) for item in timed])
    seconds_N = np.array([item.seconds for item in timed])
    factors_2 = _factors(sizes_N2, seconds_N)
    found = _scaled(calibration, factors_2)
    errors: dict[bool, list[float]] = {True: [], False: []}
    for place, item in enumerate(timed):
        kept = np.arange(len(timed)) != place
        other = np.ones(2) if not kept.any() else _factors(sizes_N2[kept], seconds_N[kept])
        foreseen = _foreseen(item, _scaled(calibration, other))
        errors[item.measured.tokens == 1].append(abs(foreseen / item.seconds - 1.0))
    decode, prefill = (errors[kind] or errors[not kind] for kind in (True, False))
    return msgspec.structs.replace(
        found, decode_error=float(np.median(decode)), prefill_error=float(np.median(prefill)),
        measured_there=len(timed),
    )  # fmt: skip


def _factors(sizes_N2: NDArray[np.float64], seconds_N: NDArray[np.float64]) -> NDArray[np.float64]:
    """Factors of products and of all else, pulled to one of both, which few measurements have."""
    ratio = float(np.median(seconds_N / sizes_N2.sum(axis=1)))
    both_2 = np.full(2, ratio)
    if len(seconds_N) < LEAST_SAMPLES:
        return both_2
    return relative_fit(sizes_N2, seconds_N, both_2, np.full(2, _PULL))


def _sizes(item: _Timed, calibration: Calibration) -> tuple[float, float]:
    """Seconds of the products of a measurement by the calibration, and of all else."""
    whole = products = 0.0
    for graph, step in item.parts:
        terms = step_terms(graph, step, calibration)
        whole += terms.dot(calibration.seconds)
        products += sum(getattr(terms, n) * getattr(calibration.seconds, n) for n in _PRODUCTS)
    return products, whole - products


def _foreseen(item: _Timed, calibration: Calibration) -> float:
    return sum(step_seconds(graph, step, [calibration]) for graph, step in item.parts)


def _scaled(calibration: Calibration, factors_2: NDArray[np.float64]) -> Calibration:
    """The calibration with the seconds of products and of all else multiplied."""

    def scaled(seconds: Terms) -> Terms:
        return Terms(**{
            name: getattr(seconds, name) * float(factors_2[int(name not in _PRODUCTS)])
            for name in TERMS
        })  # fmt: skip

    caches = tuple(
        msgspec.structs.replace(item, seconds=scaled(item.seconds)) for item in calibration.caches
    )
    return msgspec.structs.replace(calibration, seconds=scaled(calibration.seconds), caches=caches)
