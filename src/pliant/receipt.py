"""`Receipt`: the measured quality, size and speed of a subnet, with their conditions."""

from __future__ import annotations

import msgspec

from pliant.measurement import Measurement, format_bytes


class Conditions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a receipt was measured on: text, tokens scored, context, threads, kernels, machine."""

    text: str
    tokens: int
    context: int
    threads: int = 0
    kernels: str = ""
    machine: str = ""


class Receipt(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One measured subnet.

    `bits_per_byte` and `perplexity` of the text in `conditions`; `kl_nats` (mean KL divergence of
    the dense model's next-token distribution from this one's, with median, 99th percentile and
    maximum over tokens) and `top1_agreement` where they were measured; `weight_bytes` read,
    `memory_bytes` with cache and scratch; `effective_bits` a parameter, everything counted;
    `canary` is what it writes behind "Once upon a time"; `speed` in token/s.
    """

    address: str
    weight_bytes: int
    memory_bytes: int
    bits_per_byte: float
    perplexity: float
    conditions: Conditions
    kl_nats: float | None = None
    kl_median_nats: float | None = None
    kl_p99_nats: float | None = None
    kl_max_nats: float | None = None
    top1_agreement: float | None = None
    effective_bits: float | None = None
    canary: str | None = None
    speed: Measurement | None = None

    def __str__(self) -> str:
        speed = f", {self.speed}" if self.speed else ""
        return (
            f"{self.address}: {self.bits_per_byte:.3f} bits/byte in "
            f"{format_bytes(self.memory_bytes)}{speed}"
        )
