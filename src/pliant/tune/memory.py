"""Memory of a tuning, predicted before its first step, and the largest batch that fits."""

from __future__ import annotations

import math
from dataclasses import replace

import msgspec
import psutil
import torch

from pliant.adapters import num_adapter_parameters
from pliant.errors import OutOfSpaceError
from pliant.measurement import format_bytes
from pliant.spec import BLOCK_MATRICES, ModelSpec
from pliant.tune.distillation import LOGIT_BYTES
from pliant.tune.options import TuneOptions

#: Interpreter, torch and allocators' slack on a CPU; of a GPU, its context.
_BASE_BYTES = 400 * 2**20
#: Weights, gradients, momentum and Muon's updates, all fp32; half-precision copies in bfloat16.
_COPIES = 4
_HALF_COPIES = 0.5
#: Of adapters: themselves, gradients, momentum, variance, and the gradients of merged experts.
_ADAPTER_COPIES = 5
#: fp32 values per token that autograd keeps of one block, by what they are as wide as: two norms
#: (input, normed, result) and the residual sums; queries, keys, values before and after rotation
#: and repetition, the mixture; gate, its activation, up, their product.
_HIDDEN_COPIES, _HEAD_COPIES, _NEURON_COPIES = 8, 7, 5
#: Logits in one piece, their softmax, the copy without the teacher's tokens, the gradient.
_LOGIT_COPIES = 4


class TuningMemory(msgspec.Struct, frozen=True, kw_only=True):
    """Predicted bytes of a tuning, by what they hold, on the device that computes."""

    base: int
    weights: int
    activations: int

    @property
    def total(self) -> int:
        """The predicted peak."""
        return self.base + self.weights + self.activations


def tuning_memory(spec: ModelSpec, options: TuneOptions) -> TuningMemory:
    """What tuning a model of this spec needs; the full shape's backward pass is its peak."""
    parameters = sum(math.prod(shape) for shape in spec.tensors().values())
    copies = _COPIES + (_HALF_COPIES if options.precision == "bfloat16" else 0)
    adapters, adapted = options.adapters, 0
    if adapters is None:
        copies += options.teacher == "frozen"
    else:
        copies -= _COPIES - 1  # the weights have no gradient
        adapted = _ADAPTER_COPIES * num_adapter_parameters(spec, adapters)
    tokens = options.windows_at_once * options.window_tokens
    heads = spec.num_heads * spec.head_dim
    block = _HIDDEN_COPIES * spec.hidden_size + _HEAD_COPIES * heads
    block += _NEURON_COPIES * spec.ffn_size
    block += options.rank * len(BLOCK_MATRICES) if adapters is not None else 0
    kept = spec.num_blocks * (spec.hidden_size if options.checkpointing else block)
    running = block if options.checkpointing else 0
    logits = min(LOGIT_BYTES, 4 * tokens * spec.vocab_size) * _LOGIT_COPIES
    words = 2 * tokens * 12 * min(options.teacher_tokens, spec.vocab_size)
    return TuningMemory(
        base=_BASE_BYTES,
        weights=int(4 * (copies * parameters + adapted)),
        activations=4 * tokens * (kept + running + 3 * spec.hidden_size) + logits + words,
    )


def available_bytes(device: torch.device) -> int:
    """Bytes that are free on a device now."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    return int(psutil.virtual_memory().available)


def require_memory(spec: ModelSpec, options: TuneOptions, num_bytes: int) -> TuningMemory:
    """The prediction where it fits into `num_bytes`.

    `OutOfSpaceError` otherwise: it names the largest micro-batch that fits, with checkpointing
    where only that helps, or the memory that the smallest one needs.
    """
    needed = tuning_memory(spec, options)
    if needed.total <= num_bytes:
        return needed
    refusal = (
        f"Tuning {options.micro_tokens} tokens at a time needs {format_bytes(needed.total)} of "
        f"memory and {format_bytes(num_bytes)} are there"
    )
    for checkpointing in sorted({options.checkpointing, True}):
        for windows in range(options.windows_at_once, 0, -1):
            tokens = windows * options.window_tokens
            smaller = replace(options, micro_tokens=tokens, checkpointing=checkpointing)
            if tuning_memory(spec, smaller).total <= num_bytes:
                more = "" if checkpointing == options.checkpointing else " --checkpointing"
                raise OutOfSpaceError(
                    f"{refusal}; the largest that fits is --micro-tokens {tokens}{more}."
                )
    smallest = replace(options, micro_tokens=options.window_tokens, checkpointing=True)
    least = format_bytes(tuning_memory(spec, smallest).total)
    raise OutOfSpaceError(f"{refusal}; one window alone needs {least}. Use a larger machine.")
