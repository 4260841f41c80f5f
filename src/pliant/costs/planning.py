"""Plans: what fits on a device, how fast it runs there, and what would have to be given up."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from pliant.bits import plane_bytes, scale_bytes
from pliant.costs.device import Device
from pliant.costs.experts import Experts
from pliant.costs.footprint import EngineOptions, Footprint, footprint, process_bytes
from pliant.costs.graph import block_cuts
from pliant.costs.operators import Widths
from pliant.costs.step import MOST_STEP_TOKENS, Step
from pliant.costs.timing import Expected, decode_time, energy_joules, prefill_time
from pliant.errors import DoesNotFitError, UsageError
from pliant.measurement import format_bytes
from pliant.subnet import Subnet

#: Python and libraries around a model where no probe has measured them: of Linux on x86-64.
ASSUMED_RUNTIME_BYTES = 55_000_000
#: Tokens a prompt is taken in (runtime/generation.py).
_CHUNK = 128
#: Kernels and threads whose scratch is counted where no probe tells: it is little either way.
_ASSUMED_ENGINE = EngineOptions(threads=4, kernels="avx2")


class PlanRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a model shall do: `context` tokens for each of `sequences`, after `prompt` tokens.

    `memory_bytes` bounds everything, the device's memory besides; `tokens_per_second` is the least
    speed of decoding of each sequence, `joules` the most energy of one token. None is no limit.
    """

    context: int = 4096
    sequences: int = 1
    prompt: int = 512
    memory_bytes: int | None = None
    tokens_per_second: float | None = None
    joules: float | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        if min(self.context, self.sequences, self.prompt) < 1 or self.prompt > self.context:
            raise UsageError(
                f"A context of {self.context} tokens, {self.sequences} sequences and a prompt of "
                f"{self.prompt} were asked for; each is 1 or more, the prompt within the context."
            )
        for limit in (self.memory_bytes, self.tokens_per_second, self.joules):
            if limit is not None and not limit > 0:
                raise UsageError(f"A limit of {limit} allows nothing; give one above 0.")


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """A subnet that could be run, in words and as a value, with the cache it would have.

    `rank` orders choices, the best quality first: a predicted loss, or a rule where none is known.
    """

    depth: int
    width: float
    planes: int
    cache_bits: int
    subnet: Subnet
    rank: float


class Option(msgspec.Struct, frozen=True, kw_only=True):
    """A choice on a device: where its bytes go, how fast it is, and whether it keeps the limits.

    `concurrency` is how many such contexts fit beside the weights, as a fraction (its floor is the
    number of users); `largest_context` the most tokens for each sequence asked for.
    """

    choice: Choice
    memory: Footprint
    runtime_bytes: int
    decode: Expected
    first_token: Expected
    joules_per_token: float | None
    concurrency: float
    largest_context: int
    sequences: int
    fits_memory: bool
    fits_speed: bool

    @property
    def total_bytes(self) -> int:
        """Everything a process with this model holds."""
        return self.memory.total + self.runtime_bytes

    @property
    def tokens_per_second(self) -> float:
        """Estimated decoding speed of one sequence."""
        return 1.0 / self.decode.seconds

    @property
    def fits(self) -> bool:
        """Whether it keeps all limits."""
        return self.fits_memory and self.fits_speed


class DevicePlan(msgspec.Struct, frozen=True, kw_only=True):
    """Every option on a device, the best that keeps all limits, and the nearest where none does."""

    device: Device
    options: tuple[Option, ...]
    chosen: Option | None
    nearest: Option

    def require(self) -> Option:
        """The chosen option; `DoesNotFitError` names the nearest and what it breaks."""
        if self.chosen is not None:
            return self.chosen
        raise DoesNotFitError(self.refusal())

    def refusal(self) -> str:
        """Why nothing satisfies, and what would."""
        near, limit = self.nearest, self.device.memory_bytes
        address = f"{near.choice.depth} blocks at width {near.choice.width:g} and "
        address += f"{near.choice.planes} planes"
        if not near.fits_memory:
            return (
                f"Nothing fits on {self.device.name}, where {format_bytes(limit)} can be used at "
                f"most; the nearest, {address}, needs {format_bytes(near.total_bytes)} at this "
                f"context. Give more memory, or at most {near.largest_context} tokens of context."
            )
        return (
            f"Nothing that fits on {self.device.name} is fast enough or frugal enough; the "
            f"fastest, {address}, decodes {near.tokens_per_second:.3g} token/s "
            f"(bound {1 / near.decode.bound_seconds:.3g}). Ask for less speed, a shorter context, "
            "or a smaller model."
        )


def price(
    choice: Choice, device: Device, request: PlanRequest, experts: Experts | None = None
) -> Option:
    """One choice on a device."""
    widths = Widths.of_cache(choice.cache_bits)
    subnet = choice.subnet
    memory = planned_footprint(choice, device, request, experts)
    runtime = device.runtime_bytes or ASSUMED_RUNTIME_BYTES
    # Logits and a reserve are part of what is around the engine.
    runtime = process_bytes(subnet, memory, runtime, request.sequences) - memory.total
    limit = min(device.memory_bytes, request.memory_bytes or device.memory_bytes)
    rest = limit - (memory.total - memory.cache) - runtime
    per_sequence = memory.cache / request.sequences
    threads = request.threads
    decode = decode_time(subnet, device, request.context - 1, request.sequences, widths=widths,
                         experts=experts, threads=threads)  # fmt: skip
    joules = energy_joules(decode.seconds / request.sequences, device)
    slow = request.tokens_per_second is not None and (
        1.0 / decode.seconds < request.tokens_per_second
    )
    hungry = request.joules is not None and (joules is None or joules > request.joules)
    return Option(
        choice=choice, memory=memory, runtime_bytes=runtime, decode=decode,
        first_token=prefill_time(subnet, device, request.prompt, widths=widths, experts=experts,
                                 threads=threads),
        joules_per_token=joules, concurrency=max(0.0, rest / per_sequence),
        largest_context=_largest_context(rest, per_sequence, request, subnet),
        sequences=request.sequences, fits_memory=memory.total + runtime <= limit,
        fits_speed=not slow and not hungry,
    )  # fmt: skip


def planned_footprint(
    choice: Choice, device: Device, request: PlanRequest, experts: Experts | None = None
) -> Footprint:
    """What an engine would hold, at its largest step of the prompt and with its cache full."""
    engine = _ASSUMED_ENGINE
    if device.kernels:
        threads = max((item.threads for item in device.calibrations), default=1)
        engine = EngineOptions(threads=request.threads or threads, kernels=device.kernels)
    tokens = min(_CHUNK, request.prompt, MOST_STEP_TOKENS)
    steps = [
        Step(tokens=tokens, cached=request.prompt - tokens),
        Step.decode(request.context - 1, request.sequences),
    ]
    widths = Widths.of_cache(choice.cache_bits)
    dense = footprint(choice.subnet, steps, request.context, engine, widths)
    if experts is None:
        return dense
    mapped = dense.mapped + mixture_bytes(choice.subnet, experts)
    return msgspec.structs.replace(dense, mapped=mapped)


def mixture_bytes(subnet: Subnet, experts: Experts) -> int:
    """Stored bytes of a mixture beyond those of the dense subnet with one expert in each block."""
    hidden, more = subnet.spec.hidden_size, 0
    for cut, count in block_cuts(subnet, experts).items():
        own = _mlp_bytes(hidden, cut.neurons, cut.bits.gate, cut.bits.up, cut.bits.down)
        if cut.mixture:
            router = 8 * plane_bytes(experts.count, hidden) + scale_bytes(experts.count, hidden)
            shared = 0
            if experts.shared_neurons:
                shared = _mlp_bytes(hidden, experts.shared_neurons, cut.bits.gate, cut.bits.up,
                                    cut.bits.down)  # fmt: skip
            more += count * ((experts.count - 1) * own + router + shared)
        elif experts.dense_neurons:
            kept = round(cut.neurons * subnet.spec.ffn_size / experts.dense_neurons)
            one = _mlp_bytes(hidden, kept, cut.bits.gate, cut.bits.up, cut.bits.down)
            more += count * (own - one)
    return more


def _mlp_bytes(hidden: int, neurons: int, gate: int, up: int, down: int) -> int:
    across = (gate + up) * plane_bytes(neurons, hidden) + 2 * scale_bytes(neurons, hidden)
    return across + down * plane_bytes(hidden, neurons) + scale_bytes(hidden, neurons)


def _largest_context(rest: float, per_sequence: float, request: PlanRequest, subnet: Subnet) -> int:
    per_token = per_sequence / request.context
    room = int(max(0.0, rest) / (per_token * request.sequences))
    return min(room, subnet.spec.max_context)


def plan_device(
    choices: Iterable[Choice],
    device: Device,
    request: PlanRequest,
    experts: Experts | None = None,
) -> DevicePlan:
    """All choices on a device, the best first.

    Raises `UsageError` where there are none, or where the profile lacks what a plan needs.
    """
    options = sorted(
        (price(choice, device, request, experts) for choice in choices),
        key=lambda option: (option.choice.rank, option.total_bytes),
    )
    if not options:
        raise UsageError("There is nothing to plan: no depth, width or planes were given.")
    chosen = next((option for option in options if option.fits), None)
    return DevicePlan(
        device=device, options=tuple(options), chosen=chosen, nearest=_nearest(options)
    )


def _nearest(options: Sequence[Option]) -> Option:
    """The fastest of those that fit, or the smallest where none does."""
    within = [option for option in options if option.fits_memory]
    if within:
        return min(within, key=lambda option: option.decode.seconds)
    return min(options, key=lambda option: option.total_bytes)
