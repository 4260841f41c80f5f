"""`TuneOptions`: every number of a one-for-all tuning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from pliant.adapters import AdapterSpec
from pliant.errors import UsageError
from pliant.tune.schedule import SCHEDULES, Schedule

Precision = Literal["float32", "bfloat16"]
Mode = Literal["full", "smol"]
TeacherKind = Literal["tuned", "frozen"]

#: Arithmetic of a tuning; weights and optimizer state are float32 in both.
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
#: What is tuned: all weights, or adapters beside weights that stay as they are.
MODES: tuple[Mode, ...] = get_args(Mode)
#: Who teaches: the full shape as it is being tuned, or the model as it was before.
TEACHERS: tuple[TeacherKind, ...] = get_args(TeacherKind)
#: LoRA's alpha: an update is alpha / rank times the product of its factors.
ALPHA = 16.0
#: B of adapters begins at zero and needs a higher rate.
_ADAPTER_RATE = 0.008
#: Where adapters spare the full shape: more others can be run, and none of them needs protection.
_ANCHORED = {"balance": False, "random_shapes": 4}


@dataclass(frozen=True)
class TuneOptions:
    """How shapes are tuned. Checked at construction; `UsageError` says what is wrong.

    `batch_tokens` go into one optimizer step, `micro_tokens` of them through the network at a time,
    in windows of `window_tokens`. A step takes the full shape, `random_shapes` others and the
    smallest. The others learn `distill` x the full shape's words + (1 - `distill`) x the text, from
    the teacher's `teacher_tokens` likeliest tokens. A "frozen" `teacher` is the model as it was
    before the tuning, and the full shape learns from it too. With `balance` each shape's gradient
    is scaled by the full shape's loss over its own, within a factor of `balance_limit`.

    Matrices are tuned by Muon at `matrix_rate`, the rest by Adam at `vector_rate`, both warmed up
    over `warmup_steps` and falling by `schedule` to the share `final_rate`. `checkpointing` keeps
    only the input of each block for the backward pass and computes the rest again.

    In the `mode` "smol" only adapters are tuned, `experts` of `rank` for each matrix of a block, of
    which a shape uses `top_k`, all by Adam at `vector_rate`. One expert is a LoRA that all shapes
    share. `anchored` adapters under a frozen teacher spare the full shape: it is its own teacher,
    so there is nothing it could learn, and it stays as it was to the bit.
    """

    steps: int
    batch_tokens: int = 4096
    micro_tokens: int = 1024
    window_tokens: int = 256
    random_shapes: int = 2
    distill: float = 1.0
    teacher: TeacherKind = "frozen"
    teacher_tokens: int = 128
    balance: bool = True
    balance_limit: float = 4.0
    matrix_rate: float = 0.004
    vector_rate: float = 0.001
    schedule: Schedule = "cosine"
    final_rate: float = 0.02
    warmup_steps: int = 20
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    checkpointing: bool = False
    precision: Precision = "float32"
    mode: Mode = "full"
    rank: int = 16
    experts: int = 5
    top_k: int = 2
    anchored: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        counts = ("steps", "batch_tokens", "micro_tokens", "window_tokens", "teacher_tokens")
        for name in counts:
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be 1 or more.")
        if self.window_tokens > min(self.batch_tokens, self.micro_tokens):
            raise UsageError(
                f"A window of {self.window_tokens} tokens does not fit into batches of "
                f"{self.batch_tokens} taken {self.micro_tokens} at a time; use a shorter window."
            )
        if self.batch_tokens % self.window_tokens:
            raise UsageError(
                f"A batch of {self.batch_tokens} tokens does not divide into windows of "
                f"{self.window_tokens}; use a multiple."
            )
        if self.random_shapes < 0 or not 0 <= self.distill <= 1 or self.balance_limit < 1:
            raise UsageError(
                f"random_shapes is 0 or more, distill lies in 0 .. 1 and balance_limit is 1 or "
                f"more; found {self.random_shapes}, {self.distill} and {self.balance_limit}."
            )
        if min(self.matrix_rate, self.vector_rate, self.clip_norm) <= 0 or self.weight_decay < 0:
            raise UsageError("Rates and clip_norm must be above 0, weight_decay not below.")
        if not 0 <= self.final_rate <= 1 or self.warmup_steps < 0:
            raise UsageError("final_rate lies in 0 .. 1, and warmup_steps is 0 or more.")
        if self.teacher not in TEACHERS:
            raise UsageError(f"There is no teacher {self.teacher!r}; there are {TEACHERS}.")
        if self.schedule not in SCHEDULES or self.precision not in PRECISIONS:
            raise UsageError(
                f"There is no schedule {self.schedule!r} or no precision {self.precision!r}; "
                f"there are {SCHEDULES} and {PRECISIONS}."
            )
        if self.mode not in MODES:
            raise UsageError(f"There is no mode {self.mode!r}; there are {MODES}.")
        if self.mode == "smol":
            AdapterSpec(self.rank, self.experts, self.top_k)

    @classmethod
    def of(cls, steps: int, mode: Mode = "smol", **changes: Any) -> TuneOptions:
        """Options of a mode with the numbers that measured best for it, but for `changes`.

        `docs/how_it_works/any_shape.md` has the comparison; `pliant tune-shapes` takes these.
        """
        best: dict[str, Any] = {"vector_rate": _ADAPTER_RATE} if mode == "smol" else {}
        options = cls(**{"steps": steps, "mode": mode, **best, **changes})
        if options.adapters is None or not options.adapters.anchored:
            return options
        return cls(**{"steps": steps, "mode": mode, **best, **_ANCHORED, **changes})

    @property
    def adapters(self) -> AdapterSpec | None:
        """Numbers of the adapters that are tuned; None where the weights themselves are."""
        if self.mode == "full":
            return None
        anchored = self.anchored and self.teacher == "frozen" and self.distill > 0
        return AdapterSpec(self.rank, self.experts, self.top_k, ALPHA / self.rank, anchored)

    @property
    def windows_per_step(self) -> int:
        """Windows of one optimizer step."""
        return self.batch_tokens // self.window_tokens

    @property
    def windows_at_once(self) -> int:
        """Windows that go through the network together."""
        return self.micro_tokens // self.window_tokens
