"""What the engine holds in memory, byte for byte as `Engine.memory()` reports it.

The counts repeat the reservations of native/engine/workspace.cpp and of each kernel path; the tests
compare them with a running engine as integers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from pliant.bits import ceil_div
from pliant.bits.cache import CACHE_GROUP, CACHE_UNIT, CacheFormat
from pliant.costs.operators import Widths
from pliant.costs.step import MOST_STEP_TOKENS, Step
from pliant.errors import UsageError
from pliant.spec import ModelSpec
from pliant.subnet import Subnet

#: native/engine/: entries of a chunk of context, tasks per worker that need no split, values up to
#: which each worker computes all rows itself, weights below which one worker runs a step.
_CONTEXT_CHUNK = 256
_ENOUGH_TASKS = 8
_OWN_LANE_VALUES = 2048
_SMALL_WORK = 200_000
_TILE_ROWS = 32
#: sizeof(AttentionRow), sizeof(BestToken).
_ATTENTION_ROW_BYTES = 40
_BEST_TOKEN_BYTES = 12
_GROUP_BYTES = 64 + 4 + 4
#: For what varies from run to run: stacks, arenas of the allocator, parts of pages.
_SPARE_BYTES, _SPARE_PART = 700_000, 0.004


class Footprint(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bytes of an engine: mapped planes and scales, norms and biases, caches, scratch.

    The names are those of `Engine.memory()`, whose figures these are.
    """

    mapped: int
    vectors: int
    cache: int
    scratch: int

    @property
    def total(self) -> int:
        """All bytes of the engine; the interpreter around it is not among them."""
        return self.mapped + self.vectors + self.cache + self.scratch


class EngineOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How an engine runs: its threads, its kernel path, and whether it chooses tokens itself.

    `greedy` counts the scores that `Engine.greedy` keeps. An unknown path raises `UsageError`.
    """

    threads: int = 1
    kernels: str = "avx2"
    greedy: bool = False

    def __post_init__(self) -> None:
        if self.kernels not in KERNEL_SCRATCH or self.threads < 1:
            raise UsageError(
                f"The kernels {self.kernels!r} with {self.threads} threads are unknown; use at "
                f"least 1 thread and one of {', '.join(KERNEL_SCRATCH)}."
            )


def footprint(
    subnet: Subnet,
    steps: Iterable[Step],
    capacity: int,
    options: EngineOptions | None = None,
    widths: Widths | None = None,
) -> Footprint:
    """An engine of `subnet` that has run `steps`, with a cache of `capacity` tokens for each
    sequence of the widest of them.

    A step of more than 256 tokens is run in parts, as the engine runs it.
    """  # fmt: skip
    options, widths = options or EngineOptions(), widths or Widths(cache=subnet.bits.cache)
    parts = [part for step in steps for part in split_step(step)]
    spec, shape = subnet.spec, subnet.shape
    weights = subnet.weight_bytes
    mapped = sum(cut.num_bytes for cut in subnet.matrices())
    sequences = max((step.sequences for step in parts), default=0)
    held = widths.cache.num_bytes(sum(shape.groups), spec.head_dim, capacity)
    return Footprint(
        mapped=mapped,
        vectors=weights - mapped,
        cache=sequences * held,
        scratch=_Scratch(subnet, parts, options, widths.cache).num_bytes(),
    )


def process_bytes(subnet: Subnet, held: Footprint, runtime_bytes: int, logits: int = 1) -> int:
    """Bytes of a whole process around an engine that holds `held`, with a small reserve.

    `runtime_bytes` is what Python and libraries take (probed); `logits` rows lie in an array of
    their own. Pages that the system maps beside those that are read are not part of it: they are
    shared, and taken back when others need them.
    """
    known = held.total + runtime_bytes + 4 * logits * subnet.spec.vocab_size
    return known + _SPARE_BYTES + int(_SPARE_PART * known)


def split_step(step: Step) -> list[Step]:
    """The steps that the engine makes of one request: at most 256 tokens in each.

    Trees are left whole; the engine takes none that is larger.
    """
    if step.num_tokens <= MOST_STEP_TOKENS or step.parents is not None or step.sequences > 1:
        return [step]
    parts = []
    for begin in range(0, step.tokens, MOST_STEP_TOKENS):
        size = min(MOST_STEP_TOKENS, step.tokens - begin)
        logits = max(0, step.logits - (step.tokens - begin - size))
        parts.append(Step(tokens=size, cached=step.cached + begin, logits=min(size, logits)))
    return parts


class _Scratch:
    """The reservations of a decoder's workspace after some steps."""

    def __init__(
        self, subnet: Subnet, steps: list[Step], options: EngineOptions, cache: CacheFormat
    ) -> None:
        self.subnet, self.steps, self.options, self.cache = subnet, steps, options, cache
        self.spec: ModelSpec = subnet.spec
        self.weights = block_weights(subnet)
        self.groups, self.neurons = max(subnet.shape.groups), max(subnet.shape.neurons)
        self.tile_tokens = max(1, _TILE_ROWS // self.spec.heads_per_group)
        self.tile_rows = self.tile_tokens * self.spec.heads_per_group

    def num_bytes(self) -> int:
        """All scratch: workspace, masks of trees, rotation tables."""
        if not self.steps:
            return 0
        tokens = max(step.num_tokens for step in self.steps)
        pairs = len(self.spec.ropes) * (self.spec.head_dim // 2)
        return (
            self._lanes()
            + self._rows(tokens)
            + self.options.threads * (self._kernels(tokens) + self._attention())
            + self._context()
            + self._masks()
            + (self._scores() if self.options.greedy else 0)
            + 2 * 4 * pairs * tokens
        )

    def _workers(self, step: Step) -> int:
        work = step.num_tokens * self.weights
        work += step.num_logits * self.spec.vocab_size * self.spec.hidden_size
        return 1 if work < _SMALL_WORK else self.options.threads

    def _lanes(self) -> int:
        """Residual streams: one of all workers, or one of each where tokens are few."""
        spec, own, shared = self.spec, 0, 0
        for step in self.steps:
            tokens = step.num_tokens
            few = tokens == 1 or tokens * spec.hidden_size <= _OWN_LANE_VALUES
            shared = max(shared, tokens)
            if few and self._workers(step) > 1:
                own = max(own, tokens)
        widest = max(spec.hidden_size, self.groups * spec.group_size)
        lane = 2 * _row_bytes(spec.hidden_size) + ceil_div(widest, 64) * _GROUP_BYTES
        return lane * (shared + (self.options.threads - 1) * own)

    def _rows(self, tokens: int) -> int:
        spec = self.spec
        query, key = self.groups * spec.group_size, self.groups * spec.head_dim
        columns = (query, key, key, query, self.neurons, self.neurons, spec.hidden_size)
        floats = sum(_row_bytes(count) for count in columns)
        return tokens * (floats + ceil_div(self.neurons, 64) * _GROUP_BYTES)

    def _kernels(self, tokens: int) -> int:
        """Room of a product kernel for the widest matrix: it grows with columns and tokens."""
        scratch = KERNEL_SCRATCH[self.options.kernels]
        widest = max(self.spec.hidden_size, self.groups * self.spec.group_size, self.neurons)
        return max(scratch(widest, 1), scratch(widest, tokens))

    def _attention(self) -> int:
        rows = 3 * self.tile_rows
        size = self.spec.head_dim
        decoded = 0
        if self.cache.is_coded:  # keys and values of a unit, and scales of one of them
            decoded = CACHE_UNIT * (2 * size + 2 * ceil_div(size, CACHE_GROUP))
        return _ATTENTION_ROW_BYTES * (self.tile_rows + rows) + 4 * (rows * size + decoded)

    def _context(self) -> int:
        """Parts of results where a context is split between workers."""
        tasks = tiles = 0
        shape, spec = self.subnet.shape, self.spec
        kinds = {
            (groups, spec.block_windows[block])
            for groups, block in zip(shape.groups, shape.blocks, strict=True)
        }
        for step in self.steps:
            workers = self._workers(step)
            if workers == 1:
                continue
            for groups, window in kinds:
                chunks = self._most_chunks(step, window)
                for num_tiles in self._tiles_of_phases(step):
                    each = step.sequences * num_tiles * groups
                    if chunks > 1 and each % workers and each < _ENOUGH_TASKS * workers:
                        tasks, tiles = max(tasks, each * chunks), max(tiles, each)
        return tasks * self.tile_rows * (_ATTENTION_ROW_BYTES + 4 * spec.head_dim) + 4 * tiles

    def _tiles_of_phases(self, step: Step) -> list[int]:
        """Tiles of a sequence that attend together: with codes those of one unit of entries."""
        if not self.cache.is_coded:
            return [ceil_div(step.tokens, self.tile_tokens)]
        begin, end, found = step.cached, step.cached + step.tokens, []
        while begin < end:
            after = min(end, begin - begin % CACHE_UNIT + CACHE_UNIT)
            found.append(ceil_div(after - begin, self.tile_tokens))
            begin = after
        return found

    def _most_chunks(self, step: Step, window: int) -> int:
        most = 1
        for begin in range(0, step.tokens, self.tile_tokens):
            end = min(begin + self.tile_tokens, step.tokens)
            first = 0
            if window and step.parents is None:
                first = max(0, step.cached + begin - window + 1)
            most = max(most, ceil_div(step.cached + end, _CONTEXT_CHUNK) - first // _CONTEXT_CHUNK)
        return most

    def _masks(self) -> int:
        """A byte for each entry that a token of a tree might see, for each kind of window."""
        kinds = {self.spec.block_windows[block] for block in self.subnet.shape.blocks}
        entries = (
            step.tokens * step.cached + step.tokens * (step.tokens + 1) // 2
            for step in self.steps
            if step.parents is not None
        )
        return len(kinds) * max(entries, default=0)

    def _scores(self) -> int:
        most = max(step.num_logits for step in self.steps)
        if most == 0:
            return 0
        workers = self.options.threads
        groups = ceil_div(self.spec.hidden_size, 64)
        found = workers * most * (8 + _BEST_TOKEN_BYTES)
        return 2 * most * _row_bytes(self.spec.vocab_size) + workers * (4 * groups + 4) + found


def block_weights(subnet: Subnet) -> int:
    """Weights multiplied for one token, the head left out."""
    names = ("embedding", "head")
    return sum(cut.rows * cut.columns for cut in subnet.matrices() if cut.name not in names)


def _row_bytes(columns: int) -> int:
    """A row of floats that begins on a cache line."""
    return ceil_div(columns, 16) * 64


def _lookup(columns: int, tokens: int) -> int:
    """Tables of sums and factors of up to four tokens (native/kernels/lookup.h)."""
    groups = ceil_div(columns, 64)
    return min(tokens, 4) * (groups * 512 + 2 * ceil_div(groups, 16) * 64)


def _avx2(columns: int, tokens: int) -> int:
    groups, few = ceil_div(columns, 64), _lookup(columns, tokens)
    if tokens == 1:
        return few
    span, count = min(groups, 16), min(tokens, 192)
    factors = ceil_div(span * count, 16) * 16
    return max(few, 4 * 16_384 + span * count * 64 + factors * (8 + 2) * 4)


def _avx512(columns: int, tokens: int) -> int:
    groups = ceil_div(columns, 64)
    span, count = min(groups, 32), min(tokens, 192)
    factors = ceil_div(span * count, 16) * 16
    blocks = span * 2048 + span * count * 64 + factors * 3 * 4 + 12 * 32 * 4
    return max(8 * groups * min(tokens, 4), blocks)


def _unpacked(vector_bytes: int, pieces: int) -> Callable[[int, int], int]:
    """Paths that unpack one run of rows at a time (native/kernels/planes_int8.h)."""

    def scratch(columns: int, tokens: int) -> int:
        return 0 if tokens == 1 else min(ceil_div(columns, 32), 64) * pieces * 8 * vector_bytes

    return scratch


def _asimd(columns: int, tokens: int) -> int:
    return max(_lookup(columns, tokens), _unpacked(16, 2)(columns, tokens))


def _i8mm(columns: int, tokens: int) -> int:
    span = min(ceil_div(columns, 64), 16) * 64
    return span * 32 + span * 2 * ceil_div(min(tokens, 64), 2)


#: Kernel path -> bytes of scratch for a matrix of so many columns and so many tokens.
KERNEL_SCRATCH: dict[str, Callable[[int, int], int]] = {
    "avx512": _avx512,
    "avx2": _avx2,
    "avx2_lookup": _avx2,
    "avxvnni": _unpacked(32, 1),
    "i8mm": _i8mm,
    "asimd": _asimd,
    "asimd_lookup": _asimd,
    "neon": _unpacked(16, 2),
    "scalar": lambda columns, tokens: 0,
}
