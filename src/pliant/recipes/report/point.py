"""`Point`: a subnet in the pictures of a report."""

from __future__ import annotations

from dataclasses import dataclass

from pliant.subnet import Subnet


@dataclass(frozen=True, kw_only=True)
class Point:
    """A subnet with its bytes of weights and its loss over the full model's (0.1 is 10 % more).

    `is_measured` says whether the loss was; `source` on what. `bits_per_byte` and
    `tokens_per_second` (on `machine`) are there where they were measured. `on_frontier`: nothing
    of the same source is both smaller and better.
    """

    name: str
    weight_bytes: int
    loss: float
    is_measured: bool
    source: str
    subnet: Subnet | None = None
    bits_per_byte: float | None = None
    tokens_per_second: float | None = None
    machine: str = ""
    on_frontier: bool = False
