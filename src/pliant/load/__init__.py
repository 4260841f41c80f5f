"""What a user of a language-model server feels: load, deadlines met and missed, capacity."""

from pliant.load.arrivals import Arrival, draw_arrivals, read_arrivals
from pliant.load.capacity import find_capacity
from pliant.load.fluidity import (
    Deadlines,
    Fluidity,
    PrefillCurve,
    fit_prefill_curve,
    fluidity,
    sustainable_gap,
)
from pliant.load.generator import Endpoint, profile_prefill, run_load
from pliant.load.record import LoadReport, RequestRecord, summarize, token_times

__all__ = [
    "Arrival",
    "Deadlines",
    "Endpoint",
    "Fluidity",
    "LoadReport",
    "PrefillCurve",
    "RequestRecord",
    "draw_arrivals",
    "find_capacity",
    "fit_prefill_curve",
    "fluidity",
    "profile_prefill",
    "read_arrivals",
    "run_load",
    "summarize",
    "sustainable_gap",
    "token_times",
]
