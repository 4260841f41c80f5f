"""The time of a step on a device: the roofline bound, and what is to be expected of an engine.

Both answers are given for each question. The bound adds, operator by operator, the larger of the
time of its arithmetic at peak and of its bytes at the bandwidth (LLM-Viewer, arXiv 2402.16363).
The estimate is calibrated where the device was probed; elsewhere it is the bound over a fraction
of peak that engines reach, and says so.
"""

from __future__ import annotations

import msgspec

from pliant.costs.calibration import Calibration, operator_terms, step_seconds
from pliant.costs.device import Device
from pliant.costs.experts import Experts
from pliant.costs.graph import Graph, step_graph
from pliant.costs.operators import Operator, Widths
from pliant.costs.step import Step, prefill_steps
from pliant.costs.transfer import transferred_seconds
from pliant.subnet import Subnet

#: Fractions of peak that engines reach where nothing was measured: of the bandwidth when a step is
#: bound by memory, of the arithmetic when it is not. This engine reached 0.6 to 0.94 of the read
#: rate and about half of the dot-product peak (docs/how_it_works/engine.md); read rates are
#: themselves some 0.8 of data sheets.
ASSUMED_MEMORY, ASSUMED_ARITHMETIC = 0.65, 0.45
#: What such an estimate may be off, either way.
ASSUMED_ERROR = 0.4


class Expected(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Seconds: the roofline bound, the estimate, its relative error, and what it rests on."""

    bound_seconds: float
    seconds: float
    error: float
    basis: str

    def plus(self, other: Expected) -> Expected:
        """One after the other; the larger error counts."""
        return Expected(
            bound_seconds=self.bound_seconds + other.bound_seconds,
            seconds=self.seconds + other.seconds,
            error=max(self.error, other.error),
            basis=self.basis,
        )


class OperatorTime(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One line of a table of operators: all its times in a step together.

    `bound` says what its roofline is: `memory` or `arithmetic`. `seconds` is estimated.
    """

    name: str
    count: int
    operations: int
    memory_bytes: int
    activation_bytes: int
    bound: str
    bound_seconds: float
    seconds: float

    @property
    def intensity(self) -> float:
        """Operations per byte of memory; 0 where it needs none."""
        return self.operations / self.memory_bytes if self.memory_bytes else 0.0


def operator_bound(item: Operator, device: Device) -> tuple[float, str]:
    """Seconds of one run of an operator at peak, and which peak it is."""
    arithmetic, memory = _peak_seconds(item, device)
    return max(arithmetic, memory), "arithmetic" if arithmetic > memory else "memory"


def expected_step(graph: Graph, step: Step, device: Device, threads: int | None = None) -> Expected:
    """A step on a device, by what is known of it: calibration, transfer, or data sheet."""
    bound = sum(item.count * operator_bound(item, device)[0] for item in graph.operators)
    used = calibrations_for(device, threads)
    if used:
        error = used[-1].decode_error if step.tokens == 1 else used[-1].prefill_error
        error = max([error, *(c.error for c in used[-1].caches if c.bits == graph.cache_bits)])
        seconds = step_seconds(graph, step, used)
        basis = f"calibrated, {used[-1].threads} threads"
        if used[-1].measured_there:
            basis += f", {used[-1].measured_there} measurements there"
        if not used[-1].knows_cache(graph.cache_bits):
            basis += f", a cache of {graph.cache_bits} bits counted as float16"
        return Expected(bound_seconds=bound, seconds=seconds, error=error, basis=basis)
    if device.transfer is not None:
        return Expected(
            bound_seconds=bound, seconds=transferred_seconds(graph, device.transfer),
            error=device.transfer.error, basis=f"{device.transfer.samples} measurements there",
        )  # fmt: skip
    return Expected(
        bound_seconds=bound, seconds=sum(_assumed(item, device) for item in graph.operators),
        error=ASSUMED_ERROR, basis="data sheet, assumed efficiency",
    )  # fmt: skip


def calibrations_for(device: Device, threads: int | None) -> list[Calibration]:
    """Calibrations up to `threads` threads (default: the most), fewest first."""
    ordered = sorted(device.calibrations, key=lambda item: item.threads)
    if threads is None:
        return ordered
    fitting = [item for item in ordered if item.threads <= threads]
    return fitting if fitting and fitting[-1].threads == threads else []


def _assumed(item: Operator, device: Device) -> float:
    arithmetic, memory = _peak_seconds(item, device)
    return item.count * max(arithmetic / ASSUMED_ARITHMETIC, memory / ASSUMED_MEMORY)


def _peak_seconds(item: Operator, device: Device) -> tuple[float, float]:
    """Seconds of the arithmetic, and of the bytes, of one run at peak."""
    arithmetic = item.operations / device.rate(item.arithmetic)
    return arithmetic, item.memory_bytes / device.bandwidth.value


def decode_time(
    subnet: Subnet, device: Device, context: int, sequences: int = 1, *,
    widths: Widths | None = None, experts: Experts | None = None, threads: int | None = None,
) -> Expected:  # fmt: skip
    """Seconds until each of `sequences` has one more token, behind `context` cached ones."""
    step = Step.decode(context, sequences)
    return expected_step(step_graph(subnet, step, widths, experts), step, device, threads)


def prefill_time(
    subnet: Subnet, device: Device, tokens: int, *, chunk: int = 128,
    widths: Widths | None = None, experts: Experts | None = None, threads: int | None = None,
) -> Expected:  # fmt: skip
    """Seconds to the logits behind a prompt of `tokens` tokens taken in chunks."""
    total: Expected | None = None
    for step in prefill_steps(tokens, chunk):
        graph = step_graph(subnet, step, widths, experts)
        part = expected_step(graph, step, device, threads)
        total = part if total is None else total.plus(part)
    assert total is not None
    return total


def operator_times(graph: Graph, step: Step, device: Device) -> list[OperatorTime]:
    """The operators of a step by name, equal names of different blocks put together."""
    used = calibrations_for(device, None)
    lines: dict[str, OperatorTime] = {}
    for item in graph.operators:
        bound, peak = operator_bound(item, device)
        seconds = _assumed(item, device)
        if used:
            terms = operator_terms(item, graph, step, used[-1])
            seconds = terms.dot(used[-1].seconds_with(graph.cache_bits))
        known = lines.get(item.name)
        lines[item.name] = OperatorTime(
            name=item.name,
            count=item.count + (known.count if known else 0),
            operations=item.count * item.operations + (known.operations if known else 0),
            memory_bytes=item.count * item.memory_bytes + (known.memory_bytes if known else 0),
            activation_bytes=item.count * item.activation_bytes
            + (known.activation_bytes if known else 0),
            bound=peak,
            bound_seconds=item.count * bound + (known.bound_seconds if known else 0.0),
            seconds=seconds + (known.seconds if known else 0.0),
        )
    return list(lines.values())


def energy_joules(seconds: float, device: Device) -> float | None:
    """Joules at the device's rated power, the most it takes; None where it is not known."""
    return None if device.watts is None else seconds * device.watts.value
