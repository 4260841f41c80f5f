"""`ModelSpec`: the plain numbers of an architecture, and nothing else."""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from pliant.errors import UnsupportedError
from pliant.spec.rope import Rope

Activation = Literal["silu", "gelu", "gelu_tanh"]

#: Matrices of a block in the order in which a forward pass meets them.
BLOCK_MATRICES = ("q", "k", "v", "o", "gate", "up", "down")
#: Tensors of each half of a block, biases under the names of their matrices.
ATTENTION_NAMES = frozenset(
    {"attention_norm", "q", "k", "v", "o", "q_norm", "k_norm", "attention_post_norm"}
)
MLP_NAMES = frozenset({"mlp_norm", "gate", "up", "down", "mlp_post_norm"})

#: Sizes that a 32-bit index can hold; far above any model, so that a damaged spec is refused.
MAX_SIZE = 2**31 - 1
MAX_BLOCKS = 10_000


class ModelSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that decides what a decoder computes, except its weights.

    One block is `x += o(attention(norm(x)))` followed by `x += down(act(gate(n)) * up(n))` with
    `n = norm(x)`; all families pliant reads are settings of this one decoder:

    - `num_heads` query heads of `head_dim` in `num_groups` KV groups (grouped-query attention,
      arXiv 2305.13245); the heads of group `g` are the `heads_per_group` heads from
      `g * heads_per_group` on.
    - `norm_offset` is added to every norm weight (Gemma stores `weight - 1`).
    - `qk_norm`: RMSNorm over `head_dim` of each query and key head before rotation.
    - `post_norms`: Gemma's second norm on the output of attention and of the MLP.
    - `embedding_scale` multiplies embedding rows; `attention_scale` multiplies q·k.
    - `attention_softcap`, `logit_softcap`: `cap * tanh(x / cap)`; 0 means none.
    - `block_windows[b]`: tokens a position of block `b` may look back on, itself included
      (sliding window); 0 means all. `block_ropes[b]`: index into `ropes`; -1 means no rotation.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    num_blocks: int
    num_heads: int
    num_groups: int
    head_dim: int
    ffn_size: int
    max_context: int
    norm_epsilon: float = 1e-6
    norm_offset: float = 0.0
    activation: Activation = "silu"
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    post_norms: bool = False
    embedding_scale: float = 1.0
    attention_scale: float
    attention_softcap: float = 0.0
    logit_softcap: float = 0.0
    ropes: tuple[Rope, ...] = (Rope(),)
    block_windows: tuple[int, ...] = ()
    block_ropes: tuple[int, ...] = ()
    tied_embeddings: bool = False

    def __post_init__(self) -> None:
        self._check_numbers()
        if self.num_heads % self.num_groups:
            raise UnsupportedError(
                f"{self.num_heads} query heads do not divide into {self.num_groups} KV groups."
            )
        if self.head_dim % 2:
            raise UnsupportedError(f"head_dim is {self.head_dim}; rotary embedding needs it even.")
        if not self.block_windows:
            msgspec.structs.force_setattr(self, "block_windows", (0,) * self.num_blocks)
        if not self.block_ropes:
            msgspec.structs.force_setattr(self, "block_ropes", (0,) * self.num_blocks)
        for name in ("block_windows", "block_ropes"):
            if len(getattr(self, name)) != self.num_blocks:
                raise UnsupportedError(
                    f"{name} has {len(getattr(self, name))} entries for {self.num_blocks} blocks."
                )
        if min(self.block_windows) < 0:
            raise UnsupportedError(f"block_windows {self.block_windows} must not be negative.")
        if not all(-1 <= rope < len(self.ropes) for rope in self.block_ropes):
            raise UnsupportedError(f"block_ropes {self.block_ropes} name a rope that is not there.")

    def _check_numbers(self) -> None:
        for name in ("vocab_size", "hidden_size", "num_blocks", "num_heads", "num_groups",
                     "head_dim", "ffn_size", "max_context"):  # fmt: skip
            most = MAX_BLOCKS if name == "num_blocks" else MAX_SIZE
            if not 1 <= getattr(self, name) <= most:
                raise UnsupportedError(f"{name} is {getattr(self, name)}; 1 to {most} is possible.")
        if self.num_heads * self.head_dim > MAX_SIZE:
            raise UnsupportedError(
                f"{self.num_heads} heads of {self.head_dim} are more than {MAX_SIZE} rows."
            )
        for name in ("norm_epsilon", "attention_scale", "embedding_scale"):
            if not 0 < getattr(self, name) < math.inf:
                raise UnsupportedError(f"{name} is {getattr(self, name)}; it must be above 0.")
        for name in ("attention_softcap", "logit_softcap", "norm_offset"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UnsupportedError(f"{name} is {getattr(self, name)}; it must be 0 or more.")

    @property
    def heads_per_group(self) -> int:
        """Query heads that share one KV group; never changed by a cut."""
        return self.num_heads // self.num_groups

    @property
    def group_size(self) -> int:
        """Rows of `q` (and columns of `o`) that belong to one KV group."""
        return self.heads_per_group * self.head_dim

    def matrix_shape(self, matrix: str, groups: int, neurons: int) -> tuple[int, int]:
        """Rows and columns `(O, I)` of a block matrix that keeps `groups` and `neurons`."""
        match matrix:
            case "q":
                return groups * self.group_size, self.hidden_size
            case "k" | "v":
                return groups * self.head_dim, self.hidden_size
            case "o":
                return self.hidden_size, groups * self.group_size
            case "gate" | "up":
                return neurons, self.hidden_size
            case "down":
                return self.hidden_size, neurons
        raise AssertionError(f"{matrix!r} is not one of {BLOCK_MATRICES}")

    def has_bias(self, matrix: str) -> bool:
        """Whether a block matrix carries a bias vector of its row count."""
        if matrix in ("q", "k", "v"):
            return self.qkv_bias
        return self.o_bias if matrix == "o" else self.mlp_bias

    def block_tensors(self, groups: int, neurons: int) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor of one block that keeps `groups` and `neurons`, by its name.

        Names are those of the artifact without the leading `blocks.{b}.`: matrices, biases, norms.
        Without groups there is nothing of attention, without neurons nothing of the MLP.
        """
        shapes: dict[str, tuple[int, ...]] = {"attention_norm": (self.hidden_size,)}
        for matrix in BLOCK_MATRICES:
            shapes[matrix] = self.matrix_shape(matrix, groups, neurons)
            if self.has_bias(matrix):
                shapes[f"{matrix}.bias"] = shapes[matrix][:1]
        if self.qk_norm:
            shapes |= {"q_norm": (self.head_dim,), "k_norm": (self.head_dim,)}
        shapes["mlp_norm"] = (self.hidden_size,)
        if self.post_norms:
            shapes["attention_post_norm"] = shapes["mlp_post_norm"] = (self.hidden_size,)
        if groups and neurons:
            return shapes
        left_out = MLP_NAMES if groups else ATTENTION_NAMES
        return {name: shape for name, shape in shapes.items() if name.split(".")[0] not in left_out}

    def block_weights(self, groups: int, neurons: int) -> int:
        """Entries of the matrices of one block that keeps `groups` and `neurons`."""
        shapes = (self.matrix_shape(matrix, groups, neurons) for matrix in BLOCK_MATRICES)
        return sum(rows * columns for rows, columns in shapes)

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor of the dense model, by its name in the artifact."""
        vocabulary = (self.vocab_size, self.hidden_size)
        shapes: dict[str, tuple[int, ...]] = {"embedding": vocabulary}
        if not self.tied_embeddings:
            shapes["head"] = vocabulary
        block_shapes = self.block_tensors(self.num_groups, self.ffn_size)
        for block in range(self.num_blocks):
            shapes |= {f"blocks.{block}.{name}": shape for name, shape in block_shapes.items()}
        return {**shapes, "final_norm": (self.hidden_size,)}
