"""Types of the native module; `native/bind/` defines it, `pliant.runtime` checks what goes in."""

from collections.abc import Sequence
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

#: Most threads of a decoder.
MAX_THREADS: int

def default_threads() -> int:
    """Physical cores this process may use, affinity and cgroup quota counted."""

class Activation:
    """Activation of the gated MLP."""

    silu: ClassVar[Activation]
    gelu: ClassVar[Activation]
    gelu_tanh: ClassVar[Activation]

class ActivationMode:
    """How activations enter matrix products."""

    int8: ClassVar[ActivationMode]
    float32: ClassVar[ActivationMode]

class CacheType:
    """Type of stored keys and values."""

    float16: ClassVar[CacheType]
    float32: ClassVar[CacheType]

class Preload:
    """When the bytes of weights come into memory."""

    none: ClassVar[Preload]
    ahead: ClassVar[Preload]
    all: ClassVar[Preload]
    lock: ClassVar[Preload]

class DecoderConfig:
    """Numbers of a `ModelSpec` and how to run them; set every attribute before use."""

    vocab_size: int
    hidden_size: int
    heads_per_group: int
    head_dim: int
    max_context: int
    norm_epsilon: float
    norm_offset: float
    activation: Activation
    embedding_scale: float
    attention_scale: float
    attention_softcap: float
    logit_softcap: float
    mode: ActivationMode
    cache_type: CacheType
    cache_bits: int
    cache_window: int
    threads: int
    check_finite: bool
    preload: Preload
    head_screen: int

    def __init__(self) -> None: ...
    def add_rotation(self, frequencies: NDArray[np.float32], amplitude: float) -> None:
        """Add a rotary embedding: radians per token `[head_dim / 2]`, factor on cos and sin."""

class PlaneMatrix:
    """Planes and scales of the prefix `[rows, columns]` of a stored matrix.

    Keeps the arrays alive and copies nothing. `ValueError` where an array is too short for the
    stored shape, or the prefix exceeds it.
    """

    def __init__(
        self,
        planes: Sequence[NDArray[np.uint8]],
        scales: NDArray[np.uint16],
        rows: int,
        columns: int,
        stored_rows: int,
        stored_columns: int,
        form: str = "uniform",
    ) -> None: ...
    @property
    def rows(self) -> int:
        """Rows kept."""

    @property
    def columns(self) -> int:
        """Columns kept."""

    @property
    def num_planes(self) -> int:
        """Planes read."""

class LowRank:
    """Factors of an update `B A` of one matrix, layout as in `native/kernels/low_rank.h`.

    Keeps the arrays alive and copies nothing. `ValueError` where one has another size than rank,
    rows and columns say.
    """

    def __init__(
        self,
        a: NDArray[np.int8],
        a_scales: NDArray[np.float32],
        b: NDArray[np.int8],
        b_scales: NDArray[np.uint16],
        rank: int,
        rows: int,
        columns: int,
    ) -> None: ...
    @property
    def rank(self) -> int:
        """Columns of B."""

class Block:
    """Weights of one kept block; `rotation` is -1 for none, `window` 0 for all."""

    def __init__(
        self, block: int, groups: int, neurons: int, rotation: int, window: int
    ) -> None: ...
    def set_matrix(self, name: str, matrix: PlaneMatrix) -> None:
        """Set q, k, v, o, gate, up or down; `ValueError` for another name."""

    def set_vector(self, name: str, vector: NDArray[np.float32]) -> None:
        """Copy a norm, or the bias `{matrix}.bias`; `ValueError` for another name."""

    def set_low_rank(self, name: str, update: LowRank) -> None:
        """Add an update to the matrix of this name; `ValueError` for another name."""

class Interrupt:
    """Set by one thread to let another one's run end early."""

    def __init__(self) -> None: ...
    def set(self) -> None:
        """Let the run end after its step."""

    def clear(self) -> None:
        """Let runs go on."""

    @property
    def is_set(self) -> bool:
        """Whether a run is to end."""

class KVCache:
    """Keys and values of one sequence; made by `Decoder.new_cache` only."""

    @property
    def length(self) -> int:
        """Tokens held."""

    @property
    def capacity(self) -> int:
        """Most tokens it can hold."""

    @property
    def num_bytes(self) -> int:
        """Bytes reserved for `capacity` tokens: keys, values, tokens, positions, log-weights."""

    @property
    def exact_from(self) -> int:
        """The shortest length to which it can be cut and be as if it had never been longer.

        0 unless entries are coded: those of a window that a shorter text would see exactly may be
        left as codes only. `truncate` and `copy` below it go on with what the codes give back.
        """

    @property
    def positions(self) -> NDArray[np.int32]:
        """Original position of each token, a copy, `[length]`."""

    @property
    def tokens(self) -> NDArray[np.int32]:
        """The tokens, a copy, `[length]`."""

    @property
    def log_weights(self) -> NDArray[np.float32]:
        """Log-weight of each token, added to its attention scores; a copy, `[length]`."""

    def set_log_weights(self, log_weights: NDArray[np.float32]) -> None:
        """Replace the log-weights; `UsageError` unless there is a finite one for each token."""

    def truncate(self, length: int) -> None:
        """Forget the tokens from `length` on; `UsageError` where there are fewer."""

    def clone(self) -> KVCache:
        """An independent copy with the same tokens and capacity."""

    def copy(self, length: int, capacity: int) -> KVCache:
        """An independent copy of the first `length` tokens with room for `capacity`.

        `UsageError` where there are fewer tokens or they do not fit, or for a capacity above the
        context.
        """

class Decoder:
    """One subnet, ready to run. `UsageError` where sizes disagree."""

    def __init__(
        self,
        config: DecoderConfig,
        embedding: PlaneMatrix,
        head: PlaneMatrix,
        final_norm: NDArray[np.float32],
        blocks: Sequence[Block],
    ) -> None: ...
    def new_cache(self, capacity: int, max_bytes: int = 0) -> KVCache:
        """An empty cache; `max_bytes` 0 means no limit."""

    def forward(
        self,
        caches: Sequence[KVCache],
        tokens: Sequence[NDArray[np.int32]],
        positions: Sequence[NDArray[np.int32] | None],
        masks: Sequence[NDArray[np.bool_] | None],
        num_logits: Sequence[int],
        logits: NDArray[np.float32],
    ) -> None:
        """Append tokens to caches; write the logits of the last `num_logits` tokens of each."""

    def choose(
        self,
        caches: Sequence[KVCache],
        tokens: Sequence[NDArray[np.int32]],
        positions: Sequence[NDArray[np.int32] | None],
        masks: Sequence[NDArray[np.bool_] | None],
        num_logits: Sequence[int],
    ) -> list[int]:
        """Append tokens to caches; the likeliest token behind the last `num_logits` of each."""

    def continue_texts(
        self,
        caches: Sequence[KVCache],
        tokens: Sequence[int],
        steps: int,
        ends: Sequence[int],
        interrupt: Interrupt | None,
        samplers: Sequence[Sampler],
        uniforms: NDArray[np.float64],
    ) -> NDArray[np.int32]:
        """Append a token to each cache, step by step the likeliest, or drawn with a number of
        `uniforms` `[steps, samplers]` where there are samplers; `[steps done, caches]`.
        """

    def screening(self) -> tuple[int, int, int]:
        """Tokens chosen, tiles of the head for them, and tiles read in all planes."""

    def memory(self) -> dict[str, int]:
        """Bytes mapped, of them in memory, of vectors, of live caches, of scratch."""

    def switch_to(self, other: Decoder, rebuild: bool) -> tuple[int, int]:
        """Change places with `other`, taking all live caches along: their number and tokens.

        Caches keep their entries, or with `rebuild` their tokens run through `other`. On any error
        nothing has changed.
        """

    def close(self) -> None:
        """Let go of threads and scratch."""

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""

class Sampler:
    """Draws the tokens of one text, as `pliant.runtime.sampling.Sampler` has it.

    `ValueError` for options out of their range and for ids below 0.
    """

    def __init__(
        self,
        isa: str,
        *,
        temperature: float,
        top_k: int,
        top_p: float,
        min_p: float,
        repetition_penalty: float,
        presence_penalty: float,
        frequency_penalty: float,
        biased: NDArray[np.int32],
        biases: NDArray[np.float32],
        excluded: NDArray[np.int32],
        seen: NDArray[np.int32],
    ) -> None: ...
    def sample(
        self,
        logits: NDArray[np.float32],
        uniform: float,
        allowed: NDArray[np.uint32] | None = None,
    ) -> int:
        """The token at `uniform`, in [0, 1), of the distribution; the text goes on with it.

        `GenerationError` where no score is finite, one is NaN or infinite, or a token with a bias
        or penalty is beyond the logits; `ValueError` for other arguments that cannot be.
        """

def log_probabilities(
    isa: str, logits: NDArray[np.float32], token: int, count: int
) -> tuple[float, list[tuple[int, float]]]:
    """Of a token, and of the `count` likeliest; errors as for `Sampler.sample`."""

class Crew:
    """Chooses the workers of each step, for tests."""

    def __init__(self, workers: int) -> None: ...
    def size_for(self, work: int) -> int:
        """Workers for a step that multiplies `work` weights: 1 or all."""

    def record(self, workers: int, work: int, seconds: float, slept_seconds: float) -> None:
        """What that step took, and how long its caller slept waiting."""

class Kernels(Protocol):
    """The submodule `kernels`: each kernel of each instruction-set path, for tests and benchmarks.

    `isa` is one of `paths()`; planes and scales are as stored, x is float32 `[T, K]`.
    """

    Crew: type[Crew]

    def best(self) -> str:
        """The path in use: the fastest, or what `PLIANT_ISA` asks for."""

    def paths(self) -> list[str]:
        """Names of the paths of this build on this CPU, fastest first."""

    def default_threads(self) -> int:
        """Physical cores this process may use."""

    def measure_read(self, num_bytes: int, threads: int, rounds: int) -> list[float]:
        """Seconds to read `num_bytes` of memory, for each round."""

    def measure_walk(
        self,
        step_bytes: list[int],
        streams: int,
        prefetch_bytes: int,
        num_bytes: int,
        threads: int,
        rounds: int,
    ) -> list[float]:
        """Seconds to read `num_bytes` in each round in the order of a layout of planes and scales.

        Each step takes `step_bytes[i]` of run i; `streams` places of each run advance by turns.
        """

    def measure_dot_peak(self, isa: str, threads: int, rounds: int) -> list[float]:
        """Multiplications and additions per second of the dot-product instruction."""

    def measure_barrier(self, threads: int, phases: int, rounds: int) -> list[float]:
        """Seconds of a phase in which no thread has anything to do, for each round."""

    def quota_cpus(self, root: str, self_cgroup: str) -> int:
        """CPUs' worth of time that the cgroups of `self_cgroup` below `root` grant; 0: no quota."""

    def measure_product(
        self,
        isa: str,
        num_planes: int,
        rows: int,
        columns: int,
        tokens: int,
        threads: int,
        num_matrices: int,
        rounds: int,
    ) -> list[float]:
        """Seconds per product in each round, over matrices visited in turn."""

    def planes_int8(
        self,
        isa: str,
        planes: Sequence[NDArray[np.uint8]],
        scales: NDArray[np.uint16],
        rows: int,
        columns: int,
        stored_columns: int,
        x: NDArray[np.float32],
        threads: int = 1,
    ) -> NDArray[np.float32]:
        """Quantize x and multiply: `[T, rows]`."""

    def planes_f32(
        self,
        isa: str,
        planes: Sequence[NDArray[np.uint8]],
        scales: NDArray[np.uint16],
        rows: int,
        columns: int,
        stored_columns: int,
        x: NDArray[np.float32],
        threads: int = 1,
    ) -> NDArray[np.float32]:
        """Multiply in fp32: `[T, rows]`."""

    def decode_row(
        self,
        isa: str,
        planes: Sequence[NDArray[np.uint8]],
        scales: NDArray[np.uint16],
        rows: int,
        columns: int,
        stored_columns: int,
        row: int,
    ) -> NDArray[np.float32]:
        """One row in fp32, `[columns]`."""

    def low_rank(
        self,
        isa: str,
        update: LowRank,
        x: NDArray[np.float32],
        y: NDArray[np.float32],
        exact: bool = False,
        threads: int = 1,
    ) -> NDArray[np.float32]:
        """`y[T, rows] + B (A x)`; x is rounded to int8 first unless `exact`."""

    def signs_int8(
        self,
        isa: str,
        planes: Sequence[NDArray[np.uint8]],
        scales: NDArray[np.uint16],
        rows: int,
        columns: int,
        stored_columns: int,
        x: NDArray[np.float32],
        threads: int = 1,
    ) -> NDArray[np.float32]:
        """Quantize x and multiply by planes of signs: `[T, rows]`."""

    def signs_f32(
        self,
        isa: str,
        planes: Sequence[NDArray[np.uint8]],
        scales: NDArray[np.uint16],
        rows: int,
        columns: int,
        stored_columns: int,
        x: NDArray[np.float32],
        threads: int = 1,
    ) -> NDArray[np.float32]:
        """Multiply by planes of signs in fp32: `[T, rows]`."""

    def signs_row(
        self,
        planes: Sequence[NDArray[np.uint8]],
        scales: NDArray[np.uint16],
        rows: int,
        columns: int,
        stored_columns: int,
        row: int,
    ) -> NDArray[np.float32]:
        """One row in fp32, `[columns]`."""

    def shift_add(
        self,
        planes: Sequence[NDArray[np.uint8]],
        scales: NDArray[np.uint16],
        rows: int,
        columns: int,
        stored_columns: int,
        codes: NDArray[np.int8],
        exponents: NDArray[np.int32],
    ) -> NDArray[np.float32]:
        """`codes[T, K] * 2^exponents[T, groups]` by shifts and additions alone: `[T, rows]`."""

    def coefficients_int8(
        self,
        isa: str,
        planes: Sequence[NDArray[np.uint8]],
        coefficients: Sequence[NDArray[np.uint16]],
        offsets: NDArray[np.uint16],
        rows: int,
        columns: int,
        stored_columns: int,
        x: NDArray[np.float32],
        threads: int = 1,
    ) -> NDArray[np.float32]:
        """Quantize x and multiply by planes with a coefficient each: `[T, rows]`."""

    def coefficients_f32(
        self,
        isa: str,
        planes: Sequence[NDArray[np.uint8]],
        coefficients: Sequence[NDArray[np.uint16]],
        offsets: NDArray[np.uint16],
        rows: int,
        columns: int,
        stored_columns: int,
        x: NDArray[np.float32],
        threads: int = 1,
    ) -> NDArray[np.float32]:
        """Multiply in fp32: `[T, rows]`."""

    def coefficients_row(
        self,
        isa: str,
        planes: Sequence[NDArray[np.uint8]],
        coefficients: Sequence[NDArray[np.uint16]],
        offsets: NDArray[np.uint16],
        rows: int,
        columns: int,
        stored_columns: int,
        row: int,
    ) -> NDArray[np.float32]:
        """One row in fp32, `[columns]`."""

    def ternary_int8(
        self,
        isa: str,
        digits: NDArray[np.uint8],
        scales: NDArray[np.uint16],
        rows: int,
        columns: int,
        stored_columns: int,
        x: NDArray[np.float32],
        threads: int = 1,
    ) -> NDArray[np.float32]:
        """Quantize x and multiply by ternary weights: `[T, rows]`."""

    def quantize(
        self, isa: str, x: NDArray[np.float32]
    ) -> tuple[NDArray[np.int8], NDArray[np.float32], NDArray[np.int32]]:
        """Codes `[T, stride]`, scales and sums of the groups of 64 `[T, groups]`."""

    def sum_scales(
        self,
        isa: str,
        planes: Sequence[NDArray[np.uint8]],
        scales: NDArray[np.uint16],
        rows: int,
        columns: int,
        stored_columns: int,
        weight: NDArray[np.float32],
    ) -> NDArray[np.float32]:
        """Sums of scale * weight over the groups of each row."""

    def rms_norm(
        self,
        isa: str,
        x: NDArray[np.float32],
        weight: NDArray[np.float32],
        offset: float,
        epsilon: float,
    ) -> NDArray[np.float32]:
        """RMSNorm of one row."""

    def norm_quantize(
        self,
        isa: str,
        x: NDArray[np.float32],
        weight: NDArray[np.float32],
        offset: float,
        epsilon: float,
    ) -> tuple[NDArray[np.int8], NDArray[np.float32], NDArray[np.int32]]:
        """Codes, scales and sums of one row, normed."""

    def rotate(
        self,
        isa: str,
        head: NDArray[np.float32],
        cosine: NDArray[np.float32],
        sine: NDArray[np.float32],
    ) -> NDArray[np.float32]:
        """One head, rotated."""

    def gated(
        self, isa: str, activation: int, gate: NDArray[np.float32], up: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """`activation(gate) * up`; 0 silu, 1 gelu, 2 gelu with tanh."""

    def store_half(self, isa: str, x: NDArray[np.float32]) -> NDArray[np.uint16]:
        """fp16 bits, rounded to nearest even."""

    def store_int8(self, isa: str, x: NDArray[np.float32]) -> tuple[NDArray[np.int8], float]:
        """Codes and scale of one cache entry."""

    def attend(
        self,
        isa: str,
        queries: NDArray[np.float32],
        keys: NDArray[np.float32],
        values: NDArray[np.float32],
        cache: str,
        begins: Sequence[int],
        ends: Sequence[int],
        scale: float = 1.0,
        softcap: float = 0.0,
        log_weights: NDArray[np.float32] | None = None,
        visible: NDArray[np.uint8] | None = None,
    ) -> NDArray[np.float32]:
        """Attention of query heads `[R, D]`, each over its entries [begin, end) that are visible.

        Keys and values `[N, D]` are stored as `cache` (float32, float16 or int8) first; `visible`
        is `[R, N]`.
        """

kernels: Kernels
