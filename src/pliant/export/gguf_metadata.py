"""What GGUF says of an architecture, and which subnets llama.cpp cannot hold.

llama.cpp derives from the name of an architecture what other formats state: which blocks slide,
which rotate, how queries are scaled. `GGUF_ARCHITECTURES` says what each name implies; a subnet
that is otherwise is refused before anything is written.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from pliant.errors import UnsupportedError
from pliant.spec import ModelSpec, Rope

Key = tuple[str, Any]


class GgufArchitecture(msgspec.Struct, frozen=True, kw_only=True):
    """What llama.cpp makes of an architecture's name.

    `interleaved`: pairs of rotation are neighbours, so rows of q and k change places.
    `window_period`: sliding windows in all blocks but every n-th; 0: in none, whatever is said.
    `rotation_period`: blocks that do not rotate are every n-th; 0: all rotate. `rope_factors`: a
    tensor may divide each frequency. `mlp_bias`, `o_bias`: whether such biases are read.
    """

    name: str
    interleaved: bool = False
    window_period: int = 0
    rotation_period: int = 0
    rope_factors: bool = False
    mlp_bias: bool = False
    o_bias: bool = False


GGUF_ARCHITECTURES: dict[str, GgufArchitecture] = {
    "llama": GgufArchitecture(
        name="llama", interleaved=True, rope_factors=True, mlp_bias=True, o_bias=True
    ),
    "mistral": GgufArchitecture(name="llama", interleaved=True, rope_factors=True),
    "qwen2": GgufArchitecture(name="qwen2"),
    "qwen3": GgufArchitecture(name="qwen3"),
    "gemma2": GgufArchitecture(name="gemma2", window_period=2),
    "gemma3": GgufArchitecture(name="gemma3", window_period=6),
    "smollm3": GgufArchitecture(name="smollm3", interleaved=True, rotation_period=4),
}


#: A Qwen 2 whose heads do not fill the hidden size, as after a cut: llama.cpp's own class takes it
#: for damaged, while its Llama with biases computes the same.
_NARROW_QWEN2 = GgufArchitecture(name="llama", interleaved=True)


def gguf_architecture(spec: ModelSpec) -> GgufArchitecture:
    """The row of `spec`; `UnsupportedError` where there is none."""
    if spec.architecture not in GGUF_ARCHITECTURES:
        raise UnsupportedError(
            f"Exporting a {spec.architecture} to gguf is not supported; there are "
            f"{', '.join(GGUF_ARCHITECTURES)}. Export it to hf."
        )
    if spec.architecture == "qwen2" and spec.num_heads * spec.head_dim != spec.hidden_size:
        return _NARROW_QWEN2
    return GGUF_ARCHITECTURES[spec.architecture]


def gguf_context(spec: ModelSpec) -> int:
    """Tokens within which llama.cpp computes what `spec` says; less where it ignores windows."""
    windows = [window for window in spec.block_windows if window]
    if windows and not gguf_architecture(spec).window_period:
        return min(spec.max_context, *windows)
    return spec.max_context


def check_held(spec: ModelSpec) -> None:
    """Raise `UnsupportedError` where llama.cpp would compute something else than `spec`."""
    row = gguf_architecture(spec)
    for found, nearest in filter(None, (check(spec, row) for check in _CHECKS)):
        raise UnsupportedError(
            f"llama.cpp cannot hold this {spec.architecture}: {found}. {nearest}"
        )


def _check_windows(spec: ModelSpec, row: GgufArchitecture) -> tuple[str, str] | None:
    if not row.window_period:
        return None
    expected = [(block + 1) % row.window_period != 0 for block in range(spec.num_blocks)]
    found = [window > 0 for window in spec.block_windows]
    matters = len(spec.ropes) > 1 or any(0 < w < spec.max_context for w in spec.block_windows)
    if found == expected or not matters:
        return None
    kinds = " ".join("window" if slides else "full" for slides in found)
    return (
        f"every block number divisible by {row.window_period} attends to all tokens and the others "
        f"to a window, and the kept blocks are {kinds}",
        "The nearest keep blocks in that order: cut to a depth whose kept blocks do, or to all.",
    )


def _check_rotation(spec: ModelSpec, row: GgufArchitecture) -> tuple[str, str] | None:
    period = row.rotation_period
    expected = [bool((block + 1) % period) if period else True for block in range(spec.num_blocks)]
    found = [rope >= 0 for rope in spec.block_ropes]
    if found == expected:
        return None
    kinds = " ".join("rotating" if rotates else "still" for rotates in found)
    return (
        f"every block number divisible by {period} does not rotate, and the kept ones are {kinds}",
        "The nearest keep blocks in that order: cut to a depth whose kept blocks do, or to all.",
    )


def _check_scale(spec: ModelSpec, row: GgufArchitecture) -> tuple[str, str] | None:
    if math.isclose(spec.attention_scale, spec.head_dim**-0.5, rel_tol=1e-6):
        return None
    return (
        f"attention is scaled by {spec.attention_scale:.6g} and it scales by "
        f"{spec.head_dim**-0.5:.6g}",
        "Nothing near it can be held; export it to hf.",
    )


def _check_biases(spec: ModelSpec, row: GgufArchitecture) -> tuple[str, str] | None:
    biases = {
        "q, k and v": spec.qkv_bias and row.name not in ("llama", "qwen2"),
        "o": spec.o_bias and not row.o_bias,
        "the MLP": spec.mlp_bias and not row.mlp_bias,
    }
    for place, is_lost in biases.items():
        if is_lost:
            return f"it reads no biases of {place}", "Export it to hf."
    return None


def _check_ropes(spec: ModelSpec, row: GgufArchitecture) -> tuple[str, str] | None:
    for rope in spec.ropes:
        if rope.kind == "llama3" and not row.rope_factors:
            return "it scales the rotation of this architecture in no such way", "Export it to hf."
        if rope.kind == "yarn" and not rope.truncate:
            return "its YaRN rounds the range of blended pairs", "Export it to hf."
        if rope.kind == "dynamic" and spec.max_context > rope.original_context:
            return (
                "it cannot stretch the rotation with the length of a text",
                f"The nearest has a context of {rope.original_context}.",
            )
    if len(spec.ropes) > 1 and spec.architecture != "gemma3":
        return "all its blocks rotate alike", "Export it to hf."
    return None


_CHECKS: tuple[Callable[[ModelSpec, GgufArchitecture], tuple[str, str] | None], ...] = (
    _check_windows, _check_rotation, _check_scale, _check_biases, _check_ropes,
)  # fmt: skip


def architecture_keys(spec: ModelSpec) -> list[Key]:
    """Keys and values that describe `spec`, which passed `check_held`."""
    arch = gguf_architecture(spec).name
    keys: list[Key] = [
        ("context_length", gguf_context(spec)),
        ("embedding_length", spec.hidden_size),
        ("block_count", spec.num_blocks),
        ("feed_forward_length", spec.ffn_size),
        ("attention.head_count", spec.num_heads),
        ("attention.head_count_kv", spec.num_groups),
        ("attention.key_length", spec.head_dim),
        ("attention.value_length", spec.head_dim),
        ("attention.layer_norm_rms_epsilon", float(spec.norm_epsilon)),
        ("rope.dimension_count", spec.head_dim),
        ("vocab_size", spec.vocab_size),
    ]
    windows = [window for window in spec.block_windows if window]
    if gguf_architecture(spec).window_period:
        keys.append(("attention.sliding_window", windows[0] if windows else spec.max_context))
    if spec.attention_softcap:
        keys.append(("attn_logit_softcapping", float(spec.attention_softcap)))
    if spec.logit_softcap:
        keys.append(("final_logit_softcapping", float(spec.logit_softcap)))
    keys += _rope_keys(spec)
    return [(f"{arch}.{name}", value) for name, value in keys]


def _rope_keys(spec: ModelSpec) -> list[Key]:
    """Base and scaling of the rotation; of Gemma 3 those of its blocks without a window."""
    used = {spec.ropes[rope]: window > 0
            for rope, window in zip(spec.block_ropes, spec.block_windows, strict=True)
            if rope >= 0}  # fmt: skip
    full = next((rope for rope, slides in used.items() if not slides), None)
    rope = full or next(iter(used), Rope())
    keys: list[Key] = [("rope.freq_base", float(rope.base))]
    local = [rope for rope, slides in used.items() if slides]
    if spec.architecture == "gemma3" and local:
        keys.append(("rope.freq_base_swa", float(local[0].base)))
    if rope.kind == "linear":
        keys += [("rope.scaling.type", "linear"), ("rope.scaling.factor", float(rope.factor))]
    if rope.kind == "yarn":
        # llama.cpp multiplies by its own temperature of the factor; what is left is stated.
        own = 0.1 * math.log(rope.factor) + 1.0
        keys += [
            ("rope.scaling.type", "yarn"),
            ("rope.scaling.factor", float(rope.factor)),
            ("rope.scaling.original_context_length", rope.original_context),
            ("rope.scaling.yarn_beta_fast", float(rope.beta_fast)),
            ("rope.scaling.yarn_beta_slow", float(rope.beta_slow)),
            ("rope.scaling.attn_factor", rope.amplitude / own),
        ]
    return keys


def rope_factors(spec: ModelSpec) -> NDArray[np.float32] | None:
    """What each frequency of a plain rotation is divided by, `[head_dim / 2]`; None for nothing."""
    rope = spec.ropes[0]
    if rope.kind != "llama3":
        return None
    plain = Rope(base=rope.base).frequencies(spec.head_dim, spec.max_context)
    return plain / rope.frequencies(spec.head_dim, spec.max_context)


#: Names within a block, by those of the artifact.
_BLOCK_TENSORS = {
    "attention_norm": "attn_norm", "q": "attn_q", "k": "attn_k", "v": "attn_v",
    "o": "attn_output", "q_norm": "attn_q_norm", "k_norm": "attn_k_norm", "mlp_norm": "ffn_norm",
    "gate": "ffn_gate", "up": "ffn_up", "down": "ffn_down",
    "attention_post_norm": "post_attention_norm", "mlp_post_norm": "post_ffw_norm",
}  # fmt: skip
_OUTER_TENSORS = {"embedding": "token_embd", "head": "output", "final_norm": "output_norm"}


def gguf_tensor_name(name: str) -> str:
    """What GGUF calls a tensor of the artifact's naming."""
    kind = "bias" if name.endswith(".bias") else "weight"
    plain = name.removesuffix(".bias")
    if plain in _OUTER_TENSORS:
        return f"{_OUTER_TENSORS[plain]}.{kind}"
    _, block, tensor = plain.split(".")
    return f"blk.{block}.{_BLOCK_TENSORS[tensor]}.{kind}"


def row_order(spec: ModelSpec, name: str) -> NDArray[np.int64] | None:
    """Which stored row comes n-th in the file, for rows of q and k of interleaved rotations."""
    tensor = name.rsplit(".", 1)[-1] if not name.endswith(".bias") else name.split(".")[-2]
    if tensor not in ("q", "k") or not gguf_architecture(spec).interleaved:
        return None
    heads = spec.num_heads if tensor == "q" else spec.num_groups
    rows = np.arange(heads * spec.head_dim).reshape(heads, 2, spec.head_dim // 2)
    return rows.swapaxes(1, 2).reshape(-1)
