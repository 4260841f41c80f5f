"""What subnets cost on a device, and limits on it: latency and energy budgets of a fit."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from pliant.costs.device import Device
from pliant.costs.timing import Expected, decode_time, energy_joules, prefill_time
from pliant.errors import DoesNotFitError, UsageError
from pliant.search import Candidate
from pliant.subnet import Subnet

#: Tokens of the prompt whose first token is bounded, where the context has them.
_PROMPT = 512


class DeviceCost(msgspec.Struct, frozen=True, kw_only=True):
    """Time of a decoded token and of a prompt, and joules of the token where watts are known."""

    decode: Expected
    first_token: Expected
    joules: float | None

    @property
    def tokens_per_second(self) -> float:
        """Estimated decoding speed of one sequence."""
        return 1.0 / self.decode.seconds


def device_cost(
    subnet: Subnet, device: Device, context: int, prompt: int | None = None
) -> DeviceCost:
    """What `subnet` costs on `device` with `context` cached tokens, behind `prompt` (512) tokens.

    Calibrated where the device was probed, else by its data sheet; the estimates say which.
    """
    decode = decode_time(subnet, device, max(0, context - 1))
    return DeviceCost(
        decode=decode,
        first_token=prefill_time(subnet, device, prompt or min(_PROMPT, context)),
        joules=energy_joules(decode.seconds, device),
    )


class DeviceLimits(msgspec.Struct, frozen=True, kw_only=True):
    """A device and the least speed, longest wait and most energy allowed there; None is no limit.

    Raises `UsageError` for limits that allow nothing, or energy where the watts are not known.
    """

    device: Device
    tokens_per_second: float | None = None
    first_token_seconds: float | None = None
    joules: float | None = None

    def __post_init__(self) -> None:
        for limit in (self.tokens_per_second, self.first_token_seconds, self.joules):
            if limit is not None and not limit > 0:
                raise UsageError(f"A limit of {limit} allows nothing; give one above 0.")
        if self.joules is not None and self.device.watts is None:
            raise UsageError(
                f"The power of {self.device.name} is not known, so energy cannot be bounded; add "
                "`watts` to its profile."
            )

    def holds(self, cost: DeviceCost) -> bool:
        """Whether a cost keeps all limits."""
        slow = self.tokens_per_second is not None and (
            cost.tokens_per_second < self.tokens_per_second
        )
        late = self.first_token_seconds is not None and (
            cost.first_token.seconds > self.first_token_seconds
        )
        hungry = self.joules is not None and (cost.joules or 0.0) > self.joules
        return not (slow or late or hungry)

    def kept(self, candidates: Sequence[Candidate], context: int) -> list[Candidate]:
        """The candidates that keep all limits with `context` cached tokens, in their order.

        Raises `DoesNotFitError`, naming the fastest, where there is none.
        """
        costs = [device_cost(item.subnet, self.device, context) for item in candidates]
        found = [item for item, cost in zip(candidates, costs, strict=True) if self.holds(cost)]
        if found or not candidates:
            return found
        place = min(range(len(costs)), key=lambda index: costs[index].decode.seconds)
        fastest = costs[place]
        energy = "" if fastest.joules is None else f", {fastest.joules:.3g} J a token"
        raise DoesNotFitError(
            f"No subnet keeps the limits on {self.device.name}; the fastest, "
            f"{candidates[place].address}, decodes {fastest.tokens_per_second:.3g} token/s "
            f"+-{fastest.decode.error:.0%} with its first token after "
            f"{fastest.first_token.seconds:.3g} s{energy}. Allow more, or a shorter context."
        )
