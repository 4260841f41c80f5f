"""Bounds on the numbers of a spec that comes from a file, beyond those `ModelSpec` itself has.

They lie far above any model and far below what overflows 32-bit arithmetic in the engine or lets a
hundred bytes of JSON ask for gigabytes of tables.
"""

from __future__ import annotations

import math

import numpy as np

from pliant.errors import ArtifactError
from pliant.spec import ModelSpec, Rope

MAX_VOCABULARY = 1 << 24
#: Also of rows of a block matrix, so that rows times columns of any matrix fit 44 bits.
MAX_COLUMNS = 1 << 20
MAX_CONTEXT = 1 << 24
_LIMITS = {
    "vocab_size": MAX_VOCABULARY,
    "hidden_size": MAX_COLUMNS,
    "ffn_size": MAX_COLUMNS,
    "head_dim": 1 << 12,
    "num_heads": 1 << 14,
    "max_context": MAX_CONTEXT,
}


def check_spec(spec: ModelSpec) -> None:
    """Raise `ArtifactError` where a number of the spec is beyond all sense."""
    limited = {name: (getattr(spec, name), most) for name, most in _LIMITS.items()}
    limited["num_heads * head_dim"] = (spec.num_heads * spec.head_dim, MAX_COLUMNS)
    limited["longest of block_windows"] = (max(spec.block_windows), MAX_CONTEXT)
    limited["number of ropes"] = (len(spec.ropes), spec.num_blocks)
    for name, (value, most) in limited.items():
        if value > most:
            raise ArtifactError(f"{name} of the spec is {value}; at most {most} is allowed.")
    for rope in spec.ropes:
        _check_rope(rope, spec)


def _check_rope(rope: Rope, spec: ModelSpec) -> None:
    """The table of a rope must be finite for every context the model may run."""
    try:
        with np.errstate(all="raise", under="ignore"):
            tables = [rope.frequencies(spec.head_dim, n) for n in (1, spec.max_context)]
            amplitude = rope.amplitude
    except (ArithmeticError, ValueError) as error:
        raise ArtifactError(f"The rotary embedding {rope} cannot be computed: {error}.") from error
    # One radian per token is the fastest any model turns; 1000 leaves room and stays exact.
    bounded = all(np.isfinite(table).all() and np.abs(table).max() < 1e3 for table in tables)
    if not (bounded and math.isfinite(amplitude) and abs(amplitude) < 1e6):
        raise ArtifactError(f"The rotary embedding {rope} is not finite.")
