"""`Workers`: the processes that tune one model together, one of them or many.

Started by `torchrun`, each computes the gradient of its windows; the sums are equal everywhere, so
every process takes the same step.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import distributed

from pliant.errors import UsageError

#: The first process may calibrate for hours while the others wait for its result.
_PATIENCE = timedelta(days=7)


@dataclass(frozen=True)
class Workers:
    """This process's place, `rank`, among `count` that run the same program."""

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes files and reports."""
        return self.rank == 0

    def add(self, tensor: torch.Tensor) -> None:
        """Replace a tensor by its sum over all processes."""
        if self.count > 1:
            distributed.all_reduce(tensor)

    def wait(self) -> None:
        """Until all processes have come here."""
        if self.count > 1:
            distributed.barrier()


def _count() -> int:
    """Processes that `torchrun` started, this one among them; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def require_one_process() -> None:
    """Raise `UsageError` under `torchrun` with several: each would write the same artifact."""
    if _count() > 1:
        raise UsageError(
            f"A build was started as {_count()} processes; tune with them by pliant tune-shapes, "
            "then build what it wrote in one."
        )


@contextmanager
def joined_workers(device: torch.device) -> Iterator[Workers]:
    """The workers that `torchrun` started, or this process alone; left again at the end."""
    count = _count()
    if count == 1:
        yield Workers()
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    distributed.init_process_group(backend, timeout=_PATIENCE)
    try:
        yield Workers(distributed.get_rank(), count)
    finally:
        distributed.destroy_process_group()
