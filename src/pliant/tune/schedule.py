"""How the learning rate changes over a run: a warm-up, then one of three curves."""

from __future__ import annotations

import math
from typing import Literal, get_args

Schedule = Literal["cosine", "linear", "constant"]

#: Names of all schedules, the default first.
SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)


def rate_factor(
    step: int, steps: int, warmup: int, final: float, schedule: Schedule = "cosine"
) -> float:
    """Share of the peak rate at `step` of `steps`, both counted from 0.

    Linear warm-up over `warmup` steps, times a fall to `final` at the last step (`constant`: none).
    """
    warm = min(1.0, (step + 1) / warmup) if warmup else 1.0
    place = min(1.0, step / steps)
    left = {"cosine": (1 + math.cos(math.pi * place)) / 2, "linear": 1 - place, "constant": 1.0}
    return warm * (final + (1 - final) * left[schedule])
