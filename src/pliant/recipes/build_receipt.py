"""`BuildReceipt`: what a build made, measured and took."""

from __future__ import annotations

import msgspec

from pliant.measurement import format_bytes, format_seconds
from pliant.receipt import Receipt


class BuildReceipt(msgspec.Struct, frozen=True, kw_only=True):
    """What a build made, what it measured, and what it took.

    Losses are nats per token on the held-out half of the calibration text: of the dense model in
    fp32, and of the stored planes by plane count; None and empty where no text was looked at.
    `peak_bytes` is the resident memory of the whole process, `predicted_bytes` what was announced.
    `block_errors` are of each block and plane count: the error of its output relative to what the
    dense block adds, mean squares, behind the rounded blocks before it. `warnings` say what a
    reader should know, such as that this processor has no fast kernels.
    """

    artifact: str
    num_parameters: int
    artifact_bytes: int
    dense_loss: float | None
    plane_losses: dict[int, float]
    depth_method: str | None
    seconds: float
    peak_bytes: int
    predicted_bytes: int
    was_resumed: bool
    receipts: tuple[Receipt, ...] = ()
    block_errors: dict[int, dict[int, float]] = {}
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        return (
            f"{self.artifact}: {self.num_parameters:,} parameters in "
            f"{format_bytes(self.artifact_bytes)}, built in {format_seconds(self.seconds)}, "
            f"peak memory {format_bytes(self.peak_bytes)}"
        )
