"""Which of the kernel paths runs here, and a word where it is not a fast one."""

from __future__ import annotations

import os
import platform

from pliant import _native
from pliant.errors import UsageError


def kernel_path() -> str:
    """The fastest kernel path of this machine, or what PLIANT_ISA asks for if it is here."""
    try:
        return str(_native.kernels.best())
    except ValueError as error:
        raise UsageError(str(error)) from error


def kernel_warnings() -> tuple[str, ...]:
    """What a receipt says where this processor has no fast kernels; nothing where it has some.

    Nothing as well where `PLIANT_ISA` asks for a path: then it is no surprise.
    """
    if os.environ.get("PLIANT_ISA") or kernel_path() != "scalar":
        return ()
    return (
        f"This processor ({platform.machine()}) has none of the fast kernel paths; the plain one "
        "computes the same, many times slower.",
    )
