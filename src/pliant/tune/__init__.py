"""Tuning of weights: one-for-all shapes, and the optimizer and state that every training uses."""

from pliant.tune.distillation import ShapeLoss, Teacher, balance_factor, shape_loss
from pliant.tune.interruption import StopRequest
from pliant.tune.memory import TuningMemory, available_bytes, require_memory, tuning_memory
from pliant.tune.monotone import inversions
from pliant.tune.optimizer import FlatTensors, MuonAdam, orthogonalized
from pliant.tune.options import (
    MODES,
    PRECISIONS,
    TEACHERS,
    Mode,
    Precision,
    TeacherKind,
    TuneOptions,
)
from pliant.tune.sandwich import NamedShape, Sampler, Sandwich, named_shapes, only
from pliant.tune.schedule import SCHEDULES, Schedule, rate_factor
from pliant.tune.state import TrainingProgress, load_state, save_state
from pliant.tune.tuner import LOG_FILE, ShapeTuner, hidden_states
from pliant.tune.workers import Workers, joined_workers, require_one_process

__all__ = [
    "LOG_FILE",
    "MODES",
    "PRECISIONS",
    "SCHEDULES",
    "TEACHERS",
    "FlatTensors",
    "Mode",
    "MuonAdam",
    "NamedShape",
    "Precision",
    "Sampler",
    "Sandwich",
    "Schedule",
    "ShapeLoss",
    "ShapeTuner",
    "StopRequest",
    "Teacher",
    "TeacherKind",
    "TrainingProgress",
    "TuneOptions",
    "TuningMemory",
    "Workers",
    "available_bytes",
    "balance_factor",
    "hidden_states",
    "inversions",
    "joined_workers",
    "load_state",
    "named_shapes",
    "only",
    "orthogonalized",
    "rate_factor",
    "require_memory",
    "require_one_process",
    "save_state",
    "shape_loss",
    "tuning_memory",
]
