"""What a build keeps in memory, predicted before it starts, so that `--max-ram` is a promise."""

from __future__ import annotations

import msgspec

from pliant.adapters import AdapterSpec, num_adapter_parameters
from pliant.calibrate import ReconstructionOptions, moment_bytes, reconstruction_bytes
from pliant.errors import OutOfSpaceError
from pliant.measurement import MemoryLimit, format_bytes
from pliant.models import weight_units
from pliant.recipes.encoding import Rounding
from pliant.spec import ModelSpec

#: Logits made at once while a loss is measured, and their softmax beside them.
_LOGIT_BYTES = 2 * 64 * 2**20
#: Interpreter, torch and the allocators' slack over what was counted; measured on small models.
_BASE_BYTES = 400 * 2**20
#: fp32 hidden states alive beside the ones carried: one per level of the tree of keep-vectors,
#: one for each plane count of the sensitivities.
_STATES = 10
#: A matrix being encoded: as read, as permuted, its codes and planes.
_COPIES_OF_LARGEST = 3
#: A few rows being rounded with error feedback: fp64 copies of 7 levels of 2^20 weights, errors of
#: candidates beside them; at least a tile of rows.
_ROUNDING_BYTES = 128 * 2**20


class MemoryPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes of a build by what they hold; `weights` is what may be kept of the dense model."""

    base: int
    activations: int
    working: int
    weights: int

    @property
    def total(self) -> int:
        """The predicted peak of resident memory, bytes."""
        return self.base + self.activations + self.working + self.weights

    @property
    def state_bytes(self) -> int:
        """Bytes that searches may use to keep hidden states for later."""
        return self.activations // 4


def plan_memory(
    spec: ModelSpec,
    sequences: int,
    length: int,
    limit: MemoryLimit | None = None,
    *,
    rounding: Rounding = "nearest",
    adapters: AdapterSpec | None = None,
) -> MemoryPlan:
    """The memory of a build on `sequences` windows of `length` tokens each.

    Rounding with error feedback holds moments, reconstruction what it learns of a block too.
    `adapters` are held whole, and once more merged for a shape.

    Without a limit the whole dense model is held in fp32. Under a limit what is left after all
    else holds weights; `OutOfSpaceError` names the smallest limit that works.
    """
    units = weight_units(spec)
    largest = max(units.values())
    vocabulary = 4 * spec.vocab_size * spec.hidden_size
    activations = _STATES * 4 * sequences * length * spec.hidden_size
    working = _LOGIT_BYTES + _COPIES_OF_LARGEST * max(largest, vocabulary)
    # Never at the same time as logits, the vocabulary or sensitivities.
    if rounding != "nearest":
        working = max(working, moment_bytes(spec) + _ROUNDING_BYTES + _COPIES_OF_LARGEST * largest)
    if rounding == "reconstruct":
        learning = reconstruction_bytes(spec, length, ReconstructionOptions())
        working = max(working, moment_bytes(spec) + learning + _COPIES_OF_LARGEST * largest)
    if adapters is not None:
        working += 2 * 4 * num_adapter_parameters(spec, adapters)
    plan = MemoryPlan(
        base=_BASE_BYTES, activations=activations, working=working, weights=sum(units.values())
    )
    if limit is None or plan.total <= limit.num_bytes:
        return plan
    left = limit.num_bytes - (plan.total - plan.weights)
    # A loss needs the vocabulary and one block at the same time.
    smallest = largest + vocabulary * (1 if spec.tied_embeddings else 2)
    if left < smallest:
        needed = plan.total - plan.weights + smallest
        raise OutOfSpaceError(
            f"This build needs {format_bytes(needed)} of memory at least and {limit} were given; "
            "raise --max-ram."
        )
    return msgspec.structs.replace(plan, weights=left)
