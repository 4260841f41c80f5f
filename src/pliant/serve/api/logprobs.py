"""Log-probabilities in the two shapes of the API."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pliant.runtime.tokenizer import Tokenizer
from pliant.serve.writer import TokenScore


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """The text of one token by itself; bytes that are no character become U+FFFD."""
    return tokenizer.token_bytes(token).decode("utf-8", "replace")


def chat_logprobs(tokenizer: Tokenizer, scores: Sequence[TokenScore]) -> dict[str, Any]:
    """The `logprobs` of a chat choice."""
    return {
        "content": [
            {
                **_entry(tokenizer, score.token, score.logprob or 0.0),
                "top_logprobs": [_entry(tokenizer, token, value) for token, value in score.top],
            }
            for score in scores
        ],
        "refusal": None,
    }


def completion_logprobs(
    tokenizer: Tokenizer, scores: Sequence[TokenScore], offset: int
) -> dict[str, Any]:
    """The `logprobs` of a completion choice whose text begins at character `offset`."""
    texts = [token_text(tokenizer, score.token) for score in scores]
    offsets = [offset]
    for text in texts[:-1]:
        offsets.append(offsets[-1] + len(text))
    return {
        "tokens": texts,
        "token_logprobs": [score.logprob for score in scores],
        "top_logprobs": [
            # Different tokens may have one text; the likelier of them is the one shown.
            {token_text(tokenizer, token): value for token, value in reversed(_shown(score))}
            if score.logprob is not None
            else None
            for score in scores
        ],
        "text_offset": offsets[: len(texts)],
    }


def _shown(score: TokenScore) -> list[tuple[int, float]]:
    """The likeliest tokens, and the chosen one where it is none of them."""
    chosen = (score.token, score.logprob or 0.0)
    return [*score.top] if chosen in score.top or not score.top else [*score.top, chosen]


def _entry(tokenizer: Tokenizer, token: int, logprob: float) -> dict[str, Any]:
    return {
        "token": token_text(tokenizer, token),
        "logprob": logprob,
        "bytes": list(tokenizer.token_bytes(token)),
    }
