"""What `sampling.py` draws from, here and in the interpreter of llama.cpp: needs NumPy alone."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

VOCABULARIES = {"Llama 2": 32_000, "Qwen2.5": 151_936}
#: Options by name; `seen` is how many tokens a text has already, for penalties.
CASES: dict[str, dict[str, Any]] = {
    "temperature 1": {"temperature": 1.0},
    "top_p 0.95": {"temperature": 1.0, "top_p": 0.95},
    "min_p 0.05": {"temperature": 1.0, "min_p": 0.05},
    "top_k 40, top_p 0.95, min_p 0.05": {
        "temperature": 1.0, "top_k": 40, "top_p": 0.95, "min_p": 0.05,
    },
    "repetition penalty, 1000 tokens": {
        "temperature": 1.0, "repetition_penalty": 1.1, "seen": 1000,
    },
    "half of the tokens masked": {"temperature": 1.0, "masked": True},
}  # fmt: skip
#: Rows of logits that draws go through: more than the second-level cache holds.
NUM_ROWS = 8
#: How sure the logits are: what is added to 30 tokens of a normal distribution of deviation 3.
KINDS = {"sure": 16.0, "unsure": 0.0}


@cache
def rows(vocabulary: int, kind: str) -> list[NDArray[np.float32]]:
    """Logits like those of a trained model, or of one that knows nothing."""
    random = np.random.default_rng([vocabulary, len(kind)])
    found = []
    for _ in range(NUM_ROWS):
        logits = random.normal(0, 3, vocabulary).astype(np.float32)
        likely = random.integers(0, vocabulary, 30)
        logits[likely] += np.float32(KINDS[kind])
        found.append(logits)
    return found


def seen_tokens(vocabulary: int, count: int) -> list[int]:
    """Tokens that a text has already."""
    drawn = np.random.default_rng(count).integers(0, vocabulary, count)
    return [int(token) for token in drawn]
