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
from pliant.evaluate.golden_texts import (
    GOLDEN_TEXTS_FILE,
    GoldenText,
    GoldenTextCheck,
    GoldenTexts,
    check_golden_texts,
    golden_texts_json,
    read_golden_texts,
    record_golden_texts,
)
from pliant.evaluate.speed import Runner, Speed, Workload, measure_speed, measure_speeds
from pliant.evaluate.text_loss import TextLoss, evaluate_text, token_nats

__all__ = [
    "GOLDEN_TEXTS_FILE",
    "Activations",
    "Divergence",
    "GoldenCheck",
    "GoldenPrompt",
    "GoldenRecord",
    "GoldenText",
    "GoldenTextCheck",
    "GoldenTexts",
    "Runner",
    "Speed",
    "TextLoss",
    "Workload",
    "check_golden",
    "check_golden_texts",
    "divergence",
    "evaluate_text",
    "golden_json",
    "golden_texts_json",
    "kl_nats",
    "measure_speed",
    "measure_speeds",
    "read_golden",
    "read_golden_texts",
    "record_golden",
    "record_golden_texts",
    "token_nats",
    "verify_golden",
]
