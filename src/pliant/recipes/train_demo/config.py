"""`DemoConfig`: every number of a training run of the demo model."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pliant.errors import UsageError
from pliant.spec import ModelSpec, read_spec

DEFAULT_CORPUS = Path("../shared/data/corpus")


@dataclass(frozen=True)
class DemoShape:
    """The architecture: Llama with grouped queries, SwiGLU and tied embeddings.

    Sizes are counts of entries; `context` is the longest window, in tokens.
    """

    num_blocks: int = 5
    hidden_size: int = 128
    num_heads: int = 8
    num_groups: int = 4
    head_dim: int = 16
    ffn_size: int = 192
    vocab_size: int = 1024
    context: int = 256

    def huggingface_config(self) -> dict[str, Any]:
        """The `config.json` that `transformers` loads as a `LlamaForCausalLM`."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.ffn_size,
            "num_hidden_layers": self.num_blocks,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_groups,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "max_position_embeddings": self.context,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "rope_scaling": None,
            "tie_word_embeddings": True,
            "attention_bias": False,
            "attention_dropout": 0.0,
            "mlp_bias": False,
            "use_cache": True,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "torch_dtype": "bfloat16",
        }

    def spec(self) -> ModelSpec:
        """The same architecture as a `ModelSpec`."""
        return read_spec(self.huggingface_config())

    @property
    def num_parameters(self) -> int:
        """Entries of all stored tensors, the embedding counted once."""
        total = 0
        for shape in self.spec().tensors().values():
            size = 1
            for length in shape:
                size *= length
            total += size
        return total


@dataclass(frozen=True)
class Stage:
    """Up to the fraction `until` of all steps, windows have `window` tokens."""

    until: float
    window: int


@dataclass(frozen=True)
class DemoConfig:
    """What is trained, on what, how long, and at which rates.

    `corpus` is the folder of texts, `output` the checkpoint folder to write, `state` the folder of
    token caches and resumable state. `tokens` is the length of the run; without it the run takes
    100 tokens per parameter. `batch_tokens` go into one step, `micro_tokens` of them through the
    network at a time (about what the second-level cache of a core holds). Matrices are trained by
    Muon at `matrix_rate`, embedding and norms by Adam at `vector_rate`. Checked at construction;
    `UsageError` says what is wrong.
    """

    corpus: Path = DEFAULT_CORPUS
    output: Path = Path("models/tale-750k")
    state: Path = Path(".demo/train")
    shape: DemoShape = DemoShape()
    tokens: int | None = None
    stages: tuple[Stage, ...] = (Stage(0.095, 128), Stage(1.0, 256))
    children_share: float = 0.59
    batch_tokens: int = 8192
    micro_tokens: int = 1024
    matrix_rate: float = 0.015
    vector_rate: float = 0.004
    final_rate: float = 0.02
    warmup_steps: int = 200
    weight_decay: float = 0.03
    clip_norm: float = 1.0
    initial_deviation: float = 0.05
    seed: int = 1
    processes: int = 2
    log_steps: int = 100
    heldout_seconds: float = 300.0
    save_seconds: float = 120.0
    heldout_windows: int = 128

    def __post_init__(self) -> None:
        fractions = [stage.until for stage in self.stages]
        if not fractions or fractions[-1] != 1.0 or fractions != sorted(fractions):
            raise UsageError(f"stages must end at rising fractions up to 1.0, found {fractions}")
        for stage in self.stages:
            if stage.window > self.shape.context:
                raise UsageError(
                    f"a stage trains windows of {stage.window} tokens; "
                    f"the context is {self.shape.context}"
                )
            if self.batch_tokens % (stage.window * self.processes):
                raise UsageError(
                    f"{self.batch_tokens} tokens per batch do not divide into windows of "
                    f"{stage.window} for {self.processes} processes; use a multiple of "
                    f"{stage.window * self.processes}"
                )
        if not 0 <= self.children_share <= 1:
            raise UsageError(f"children_share is {self.children_share}; it must lie in 0 .. 1")

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole run, rounded up."""
        tokens = self.tokens or 100 * self.shape.num_parameters
        return -(-tokens // self.batch_tokens)

    def window(self, step: int) -> int:
        """Tokens per window in this step."""
        return next(
            stage.window
            for stage in self.stages
            if step < stage.until * self.num_steps or stage.until == 1.0
        )

    def fingerprint(self) -> str:
        """SHA-256 (hex) of all settings that decide the weights reached after a given step.

        Folders, logging and the total length are left out: a run may be moved, and shortened or
        lengthened while it is paused.
        """
        left_out = {"corpus", "output", "state", "tokens", "log_steps"}
        left_out |= {"heldout_seconds", "save_seconds", "heldout_windows"}
        settings = {name: value for name, value in asdict(self).items() if name not in left_out}
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
