"""What a user of a language-model server feels: deadlines met and missed."""

from pliant.load.fluidity import (
    Deadlines,
    Fluidity,
    PrefillCurve,
    fit_prefill_curve,
    fluidity,
    sustainable_gap,
)

__all__ = [
    "Deadlines",
    "Fluidity",
    "PrefillCurve",
    "fit_prefill_curve",
    "fluidity",
    "sustainable_gap",
]
