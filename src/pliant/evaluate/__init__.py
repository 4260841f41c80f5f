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
from pliant.evaluate.speed import Speed, measure_speed
from pliant.evaluate.text_loss import TextLoss, evaluate_text, token_nats

__all__ = [
    "Activations",
    "Divergence",
    "GoldenCheck",
    "GoldenPrompt",
    "GoldenRecord",
    "Speed",
    "TextLoss",
    "check_golden",
    "divergence",
    "evaluate_text",
    "golden_json",
    "kl_nats",
    "measure_speed",
    "read_golden",
    "record_golden",
    "token_nats",
    "verify_golden",
]
