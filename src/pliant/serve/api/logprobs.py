"""Log-probabilities in the two shapes of the API."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any

from pliant.runtime.tokenizer import Tokenizer
from pliant.serve.writer import TokenScore


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """The text of one token by itself; bytes that are no character become U+FFFD."""
    return tokenizer.token_bytes(token).decode("utf-8", "replace")


def token_name(tokenizer: Tokenizer, token: int) -> str:
    """The text of one token, or its bytes as `bytes:\\xe6\\xbc` where they are no characters.

    So tokens that are parts of characters keep apart, as the OpenAI API has it.
    """
    given = tokenizer.token_bytes(token)
    try:
        return given.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in given)


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
    # Characters whose bytes are those of several tokens begin where the first of them does.
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    offsets = []
    for score in scores:
        offsets.append(offset)
        offset += len(decoder.decode(tokenizer.token_bytes(score.token)))
    return {
        "tokens": [token_name(tokenizer, score.token) for score in scores],
        "token_logprobs": [score.logprob for score in scores],
        "top_logprobs": [
            # Different tokens may have one text; the likelier of them is the one shown.
            {token_name(tokenizer, token): value for token, value in reversed(_shown(score))}
            if score.logprob is not None
            else None
            for score in scores
        ],
        "text_offset": offsets,
    }


def _shown(score: TokenScore) -> list[tuple[int, float]]:
    """The likeliest tokens, and the chosen one where it is none of them, as it is of 0 of them."""
    chosen = (score.token, score.logprob or 0.0)
    return [*score.top] if chosen in score.top else [*score.top, chosen]


def _entry(tokenizer: Tokenizer, token: int, logprob: float) -> dict[str, Any]:
    return {
        "token": token_text(tokenizer, token),
        "logprob": logprob,
        "bytes": list(tokenizer.token_bytes(token)),
    }
