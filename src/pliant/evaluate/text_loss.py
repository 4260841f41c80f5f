"""`evaluate_text`: how well a model predicts a text, in nats per token and bits per byte."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from pliant.errors import DataError, VerificationError
from pliant.evaluate.windows import (
    LogitReader,
    Window,
    checked_start,
    checked_window,
    windows,
)
from pliant.measurement import Progress, silent
from pliant.runtime import Tokenizer, TokenModel


class TextLoss(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The loss of one model on one text.

    `nats` is the sum of -ln p over all `tokens`; `num_bytes` are the UTF-8 bytes of the text;
    `window` and `stride` say how much context the tokens had (tokens).
    """

    nats: float
    tokens: int
    num_bytes: int
    window: int
    stride: int

    @property
    def nats_per_token(self) -> float:
        """Mean cross-entropy of a token, in nats; only comparable between equal tokenizers."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        """exp(nats per token); infinite where it passes the range of floats."""
        return math.exp(self.nats_per_token) if self.nats_per_token < 700 else math.inf

    @property
    def bits_per_byte(self) -> float:
        """Bits to encode a byte of the text; comparable between all tokenizers."""
        return self.nats / math.log(2) / self.num_bytes


def evaluate_text(
    model: TokenModel,
    tokenizer: Tokenizer,
    text: str | Sequence[str],
    window: int | None = None,
    stride: int | None = None,
    progress: Progress = silent,
) -> TextLoss:
    """The loss of `model` on `text`, one document or several.

    **What is measured.** Each document is encoded by itself, without added special tokens, and
    predicted token by token, the first one included, so every byte counts exactly once and the
    end of a document is not predicted. The tokens are scored in windows: the start token (BOS,
    or EOS where the model has no BOS) and up to `window - 1` tokens give the predictions of
    `window` tokens. Windows do not overlap unless `stride` is below `window`; then each further
    window scores its last `stride` tokens only and the others are their context. `window` is the
    model's context, at most 2048, unless given.

    Logits are held for a few dozen tokens at a time, so memory does not grow with text or window.
    Raises `DataError` for a text without tokens, `UsageError` for a window beyond the context,
    `VerificationError` where the model gives a probability that is not a number.
    """
    documents = [text] if isinstance(text, str) else list(text)
    encoded = [tokenizer.encode(document, add_bos=False) for document in documents]
    tokens = sum(map(len, encoded))
    if not tokens:
        raise DataError("The text to evaluate is empty; give a text with at least one word.")
    size, step = checked_window(model, window, stride)
    start = checked_start(tokenizer.start_id)
    reader = LogitReader(model, min(size, max(map(len, encoded))))
    nats, done = 0.0, 0
    for document in encoded:
        for part in windows(document, start, size, step):
            nats += window_nats(reader, part)
            done += part.num_scored
            progress("evaluating", done, tokens)
    num_bytes = sum(len(document.encode()) for document in documents)
    return TextLoss(nats=nats, tokens=tokens, num_bytes=num_bytes, window=size, stride=step)


def token_nats(
    logits_NV: NDArray[np.float32], targets_N: NDArray[np.integer]
) -> NDArray[np.float64]:
    """-ln p of each target under softmax of its float32 logits, in fp64 `[N]`."""
    # An infinite logit gives NaN here, which the caller refuses.
    with np.errstate(invalid="ignore"):
        top_N = logits_NV.max(axis=1, keepdims=True)
        shifted_NV = np.subtract(logits_NV, top_N, dtype=np.float64)
    chosen_N = shifted_NV[np.arange(len(targets_N)), targets_N]
    nats_N: NDArray[np.float64] = np.log(np.exp(shifted_NV).sum(axis=1)) - chosen_N
    return nats_N


def window_nats(reader: LogitReader, window: Window) -> float:
    """The sum of -ln p over the targets that a window scores; `VerificationError` as above."""
    nats = 0.0
    for part, logits_NV in reader.read(window):
        first = max(window.first_scored - part.start, 0)
        losses = token_nats(logits_NV[first:], window.targets[part][first:])
        if not np.isfinite(losses).all():
            raise VerificationError(
                f"The model gave a loss of {losses[~np.isfinite(losses)][0]} for a token; its "
                "weights or its cut are damaged. Run `pliant verify` on the artifact."
            )
        nats += float(losses.sum())
    return nats
