"""Memory of a running subnet: weights read, cache of a context, scratch of the engine.

All counts are bytes of what the engine itself holds; the interpreter around it is not counted.
"""

from __future__ import annotations

import msgspec

from pliant.adapters import low_rank_bytes
from pliant.bits import GROUP_COLUMNS, ceil_div
from pliant.bits.cache import CacheFormat
from pliant.errors import UsageError
from pliant.spec import ModelSpec
from pliant.subnet import Subnet

#: Float rows begin on a cache line of 16 floats.
_ROW_FLOATS = 16


class WorkingSet(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What runs at once: `context` cached tokens of each of `sequences`, `chunk` tokens a step.

    The default chunk of 1 is a decoding step. Prefill takes steps of many tokens and needs their
    scratch for as long as it lasts; ask with a larger `chunk` what that is. `cache` is
    how keys and values are held where that is not what the bit plan says.
    """

    context: int
    sequences: int = 1
    chunk: int = 1
    cache: CacheFormat | None = None

    def __post_init__(self) -> None:
        if self.context < 0 or self.sequences < 1 or self.chunk < 1:
            raise UsageError(
                f"A context of {self.context} tokens for {self.sequences} sequences in chunks of "
                f"{self.chunk} cannot run; contexts are 0 or more, the others 1 or more."
            )


class MemoryCost(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bytes a subnet needs while it runs, by what they hold."""

    weight_bytes: int
    cache_bytes: int
    scratch_bytes: int
    adapter_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        """All of it; what a memory budget is compared with."""
        return self.weight_bytes + self.adapter_bytes + self.cache_bytes + self.scratch_bytes


def subnet_memory(subnet: Subnet, working: WorkingSet, rank: int = 0) -> MemoryCost:
    """Exact weights and cache of `subnet`, and scratch for steps of `working.chunk` tokens.

    `rank` is that of the artifact's adapters, whose factors are held for the shape (0: none).
    """
    return MemoryCost(
        weight_bytes=subnet.weight_bytes,
        cache_bytes=working.sequences * cache_bytes(subnet, working.context, working.cache),
        scratch_bytes=scratch_bytes(subnet, working.chunk, rank),
        adapter_bytes=low_rank_bytes(subnet.spec, subnet.shape, rank) if rank else 0,
    )


def cache_bytes(subnet: Subnet, capacity: int, cache: CacheFormat | None = None) -> int:
    """What `Engine.new_cache(capacity)` reserves for one sequence of `subnet`."""
    return (cache or subnet.bits.cache).num_bytes(
        sum(subnet.shape.groups), subnet.spec.head_dim, capacity
    )


def scratch_bytes(subnet: Subnet, chunk: int, rank: int = 0) -> int:
    """Activations of a step of `chunk` tokens: fp32 rows and their int8 copies, one logit row.

    Per token: residual, norm and output (hidden), query and attention output (query rows), key and
    value, gate and up (neurons), what adapters make of q, k and v (3 ranks), cosines and sines;
    int8 copies of the rows that enter `q` and
    `down`. Buffers of the kernels, some dozens of kB per thread, are left out, and the parts of
    results where threads share a long context of few groups.
    """
    spec, shape = subnet.spec, subnet.shape
    hidden = spec.hidden_size
    groups, neurons = max(shape.groups), max(shape.neurons)
    query, key = groups * spec.group_size, groups * spec.head_dim
    rows = (hidden, hidden, hidden, query, query, key, key, neurons, neurons, 3 * rank)
    floats = sum(ceil_div(row, _ROW_FLOATS) * _ROW_FLOATS for row in rows) + spec.head_dim
    int8_groups = ceil_div(max(hidden, query), GROUP_COLUMNS) + ceil_div(neurons, GROUP_COLUMNS)
    # A group is 64 codes with an fp32 scale and an int32 sum.
    return chunk * (4 * floats + int8_groups * (GROUP_COLUMNS + 8)) + 4 * spec.vocab_size


def artifact_bytes(spec: ModelSpec, planes: int) -> int:
    """Bytes of planes, scales, norms and biases an artifact of `spec` stores with `planes` planes.

    Headers, page padding, tokenizer and receipts come on top; they are under a percent of a model
    worth compressing.
    """
    return Subnet.full(spec, planes).weight_bytes
