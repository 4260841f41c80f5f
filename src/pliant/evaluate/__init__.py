"""How good and how fast a model is: losses, divergence, golden logits, speed; any `TokenModel`."""

from pliant.evaluate.divergence import Divergence, divergence, kl_nats
from pliant.evaluate.golden import (
    Activations,
    GoldenCheck,
    GoldenPrompt,
    GoldenRecord,
    check_golden,
    golden_json,
    read_golden,
    record_golden,
    verify_golden,
)
from pliant.evaluate.speed import Runner, Speed, Workload, measure_speed, measure_speeds
from pliant.evaluate.text_loss import TextLoss, evaluate_text, token_nats

__all__ = [
    "Activations",
    "Divergence",
    "GoldenCheck",
    "GoldenPrompt",
    "GoldenRecord",
    "Runner",
    "Speed",
    "TextLoss",
    "Workload",
    "check_golden",
    "divergence",
    "evaluate_text",
    "golden_json",
    "kl_nats",
    "measure_speed",
    "measure_speeds",
    "read_golden",
    "record_golden",
    "token_nats",
    "verify_golden",
]
