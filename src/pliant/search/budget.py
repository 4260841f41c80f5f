"""`Budget`: the limits a subnet must keep."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from pliant.errors import DoesNotFitError, UsageError
from pliant.measurement import format_bytes
from pliant.search.candidate import Candidate


class Budget(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits on bytes of memory, on quality and on speed; one on energy will join them here.

    `memory_bytes` bounds what the cost function counts. `max_loss_increase` bounds the measured
    loss relative to the dense model: 0.05 allows 5 % more. `min_tokens_per_second` bounds decoding
    of one sequence. None is no limit.
    """

    memory_bytes: int
    max_loss_increase: float | None = None
    min_tokens_per_second: float | None = None

    def __post_init__(self) -> None:
        if self.memory_bytes < 1:
            raise UsageError(f"A budget of {self.memory_bytes} bytes holds nothing.")
        if self.max_loss_increase is not None and self.max_loss_increase < 0:
            raise UsageError(f"The allowed loss is {self.max_loss_increase}; it must be 0 or more.")
        if self.min_tokens_per_second is not None and self.min_tokens_per_second <= 0:
            raise UsageError(
                f"A speed of {self.min_tokens_per_second} token/s was asked for; give more than 0."
            )

    def holds(self, candidate: Candidate) -> bool:
        """Whether the candidate's memory is within the budget, and its speed where it is known."""
        return candidate.memory_bytes <= self.memory_bytes and (
            candidate.seconds_per_token is None or self.is_fast(candidate.seconds_per_token)
        )

    def is_fast(self, seconds_per_token: float) -> bool:
        """Whether decoding at this pace is fast enough."""
        wanted = self.min_tokens_per_second
        return wanted is None or seconds_per_token * wanted <= 1

    def fitting(self, candidates: Iterable[Candidate]) -> list[Candidate]:
        """Candidates within the memory, best predicted first; the smaller one among equals.

        Raises `DoesNotFitError`, naming the smallest candidate, where there is none.
        """
        offered = list(candidates)
        fitting = [candidate for candidate in offered if self.holds(candidate)]
        if not fitting:
            raise DoesNotFitError(self._nothing_fits(offered))
        return sorted(fitting, key=lambda found: (found.predicted_loss, found.memory_bytes))

    def _nothing_fits(self, offered: list[Candidate]) -> str:
        asked = f"No subnet fits in {format_bytes(self.memory_bytes)}"
        if not offered:
            return f"{asked}: the artifact offers none."
        smallest = min(offered, key=lambda candidate: candidate.memory_bytes)
        if smallest.memory_bytes <= self.memory_bytes:
            return self._too_slow(asked, offered)
        return (
            f"{asked}; the smallest that exists is {smallest.address} with "
            f"{format_bytes(smallest.memory_bytes)}, so give at least {smallest.memory_bytes} "
            "bytes or a shorter context."
        )

    def _too_slow(self, asked: str, offered: list[Candidate]) -> str:
        timed = [
            candidate
            for candidate in offered
            if candidate.seconds_per_token and candidate.memory_bytes <= self.memory_bytes
        ]
        fastest = min(timed, key=lambda candidate: candidate.seconds_per_token or 0)
        rate = 1 / (fastest.seconds_per_token or 1)
        return (
            f"{asked} and writes {self.min_tokens_per_second:g} token/s here; the fastest is "
            f"{fastest.address} with some {rate:.3g} token/s."
        )
