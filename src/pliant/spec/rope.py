"""Rotary position embedding: from the parameters of a config to the table of frequencies.

The supernet and the engine both rotate with the table made here, so no scaling rule exists twice.
The arithmetic is float32 where `transformers` computes in float32: models were trained with those
roundings, and at position 100 000 one unit in the last place of a frequency is visible.
"""

from __future__ import annotations

import math
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from pliant.errors import UnsupportedError

RopeKind = Literal["default", "linear", "dynamic", "llama3", "yarn"]

#: Larger numbers overflow float32, in which frequencies are computed.
_LARGEST = 1e38


class Rope(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One rotary embedding (RoFormer, arXiv 2104.09864): its base and its context scaling.

    `factor` stretches the context; `original_context` is the context the model was trained with
    before stretching. `low_frequency_factor` and `high_frequency_factor` belong to `llama3`;
    `beta_fast`, `beta_slow`, `attention_factor`, `mscale`, `mscale_all_dim` and `truncate` to
    `yarn` (YaRN, arXiv 2309.00071). Fields that a kind does not use keep their defaults.
    """

    base: float = 10_000.0
    kind: RopeKind = "default"
    factor: float = 1.0
    original_context: int = 0
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True

    def __post_init__(self) -> None:
        if not 1 < self.base < _LARGEST:
            raise UnsupportedError(f"RoPE base is {self.base}; it must be above 1 and finite.")
        if self.kind == "default":
            return
        if not 1 <= self.factor < _LARGEST:
            raise UnsupportedError(f"RoPE factor is {self.factor}; it must be 1 or more.")
        if self.kind != "linear" and not 1 <= self.original_context < 2**31:
            raise UnsupportedError(
                f"RoPE scaling {self.kind!r} needs the context the model was trained with; "
                f"original_context is {self.original_context}."
            )
        if self.kind == "llama3" and not self.low_frequency_factor < self.high_frequency_factor:
            raise UnsupportedError(
                f"RoPE scaling 'llama3' blends from low_freq_factor {self.low_frequency_factor} up "
                f"to high_freq_factor {self.high_frequency_factor}; the second must be larger."
            )
        if self.kind == "yarn":
            self._check_yarn()

    def _check_yarn(self) -> None:
        for name in ("beta_fast", "beta_slow"):
            if not 1e-6 < getattr(self, name) < 1e6:  # turns within the original context
                raise UnsupportedError(
                    f"YaRN's {name} is {getattr(self, name)}; 32 and 1 are usual."
                )
        for name in ("attention_factor", "mscale", "mscale_all_dim"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < _LARGEST:
                raise UnsupportedError(f"YaRN's {name} is {value}; it must be 0 or more.")

    def frequencies(self, head_dim: int, context: int) -> NDArray[np.float32]:
        """Angle per position of each rotated pair: float32 `[head_dim / 2]`, radians per token.

        `context` is the longest sequence that will be run; only `dynamic` depends on it
        (NTK-aware scaling, recomputed for sequences beyond `original_context`).
        """
        exponent = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
        base = self.base
        if self.kind == "dynamic" and context > self.original_context and head_dim > 2:
            stretch = self.factor * context / self.original_context - (self.factor - 1)
            base = base * stretch ** (head_dim / (head_dim - 2))
        frequency = np.float32(1) / np.float32(base) ** exponent
        match self.kind:
            case "linear":
                frequency = frequency / np.float32(self.factor)
            case "llama3":
                frequency = self._llama3(frequency)
            case "yarn":
                frequency = self._yarn(frequency, head_dim)
        return frequency.astype(np.float32)

    @property
    def amplitude(self) -> float:
        """Factor on cosine and sine: YaRN's attention temperature, 1 for every other kind."""
        if self.kind != "yarn":
            return 1.0
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return self._temperature(self.mscale) / self._temperature(self.mscale_all_dim)
        return self._temperature(1.0)

    def _temperature(self, mscale: float) -> float:
        return 1.0 if self.factor <= 1 else 0.1 * mscale * math.log(self.factor) + 1.0

    def _llama3(self, frequency: NDArray[np.float32]) -> NDArray[np.float32]:
        """Keep short waves, stretch long ones, blend linearly in between (Llama 3.1 report)."""
        turns = self.original_context * frequency / (2 * math.pi)
        low, high = self.low_frequency_factor, self.high_frequency_factor
        keep = np.clip((turns - low) / (high - low), 0.0, 1.0)
        stretched: NDArray[np.float32] = frequency * (keep + (1 - keep) / self.factor)
        return stretched

    def _yarn(self, frequency: NDArray[np.float32], head_dim: int) -> NDArray[np.float32]:
        """Blend by the number of turns a pair makes within the original context."""

        def pair_with_turns(turns: float) -> float:
            wave = self.original_context / (turns * 2 * math.pi)
            return head_dim * math.log(wave) / (2 * math.log(self.base))

        first, last = pair_with_turns(self.beta_fast), pair_with_turns(self.beta_slow)
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, head_dim - 1)
        # A span may be negative where the original context is tiny; then no pair is stretched.
        span = last - first or 0.001
        stretch = np.clip((np.arange(head_dim // 2) - first) / span, 0.0, 1.0)
        stretched: NDArray[np.float32] = frequency * (1 - stretch + stretch / self.factor)
        return stretched
