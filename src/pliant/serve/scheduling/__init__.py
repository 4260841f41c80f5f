"""What runs when: pure decisions, without a model, a clock or a thread."""

from pliant.serve.scheduling.fairness import FairQueue
from pliant.serve.scheduling.pace import StepPace
from pliant.serve.scheduling.pool import CachePool, Holding
from pliant.serve.scheduling.prefixes import PrefixIndex
from pliant.serve.scheduling.scheduler import Scheduler
from pliant.serve.scheduling.work import (
    CacheMove,
    Copy,
    Drop,
    Limits,
    Make,
    Plan,
    Slice,
    Take,
    TooBusyError,
    Work,
)

__all__ = [
    "CacheMove",
    "CachePool",
    "Copy",
    "Drop",
    "FairQueue",
    "Holding",
    "Limits",
    "Make",
    "Plan",
    "PrefixIndex",
    "Scheduler",
    "Slice",
    "StepPace",
    "Take",
    "TooBusyError",
    "Work",
]
