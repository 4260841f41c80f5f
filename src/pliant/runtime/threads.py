"""How many threads an engine or a probe gets."""

from __future__ import annotations

from pliant import _native
from pliant.errors import UsageError


def usable_threads(asked: int | None) -> int:
    """`asked` threads, or the physical cores; `UsageError` where no engine can have as many."""
    if asked is None:
        return _native.default_threads()
    if not 1 <= asked <= _native.MAX_THREADS:
        raise UsageError(
            f"{asked} threads were asked for; use 1 to {_native.MAX_THREADS}, "
            f"best {_native.default_threads()} on this machine."
        )
    return asked
