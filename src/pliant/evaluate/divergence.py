"""`divergence`: how far a model's next-token distributions are from those of a reference."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from pliant.errors import DataError, UsageError, VerificationError
from pliant.evaluate.windows import (
    LogitReader,
    Window,
    checked_start,
    checked_window,
    log_probabilities,
    windows,
)
from pliant.measurement import Progress, silent
from pliant.runtime import Tokenizer, TokenModel


class Divergence(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """KL(reference ‖ model) per token in nats, and how often both put the same token first.

    `p99_nats` is the 99th percentile over tokens; `top1_agreement` is a ratio in [0, 1].
    """

    mean_nats: float
    median_nats: float
    p99_nats: float
    max_nats: float
    top1_agreement: float
    tokens: int


def divergence(
    model: TokenModel,
    reference: TokenModel,
    tokenizer: Tokenizer,
    text: str | Sequence[str],
    window: int | None = None,
    progress: Progress = silent,
) -> Divergence:
    """Compare `model` with `reference` at every token of `text`, one document or several.

    Both read the same windows as `evaluate_text` makes without overlap; `window` is the smaller
    context of the two, at most 2048, unless given. Logits of a few tokens are held at a time, and
    one number per token. Raises `UsageError` where the vocabularies differ, else what
    `evaluate_text` raises.
    """
    if model.vocab_size != reference.vocab_size:
        raise UsageError(
            f"The model has {model.vocab_size} tokens and the reference {reference.vocab_size}; "
            "only models of one tokenizer can be compared."
        )
    shorter = min(model, reference, key=lambda one: one.max_context)
    size, _ = checked_window(shorter, window, None)
    start = checked_start(tokenizer.start_id)
    documents = [text] if isinstance(text, str) else text
    encoded = [tokenizer.encode(document, add_bos=False) for document in documents]
    tokens = sum(map(len, encoded))
    if not tokens:
        raise DataError("The text to compare on is empty; give a text with at least one word.")
    longest = min(size, max(map(len, encoded)))
    readers = LogitReader(reference, longest), LogitReader(model, longest)
    nats: list[NDArray[np.float32]] = []
    same = done = 0
    for document in encoded:
        for part in windows(document, start, size, size):
            window_nats, window_same = _compare(*readers, part)
            nats.append(window_nats)
            same += window_same
            done += part.num_scored
            progress("comparing", done, tokens)
    return _summary(np.concatenate(nats), same)


def kl_nats(
    reference_NV: NDArray[np.float32], model_NV: NDArray[np.float32]
) -> NDArray[np.float64]:
    """KL(reference ‖ model) of each row of logits, in nats, fp64 `[N]`; never below 0."""
    with np.errstate(invalid="ignore"):
        reference = log_probabilities(reference_NV)
        terms = np.exp(reference) * (reference - log_probabilities(model_NV))
    # Where the reference gives no probability, nothing is lost, whatever the model says.
    terms[np.isneginf(reference)] = 0.0
    nats_N: NDArray[np.float64] = np.maximum(terms.sum(axis=-1), 0.0)
    return nats_N


def _compare(
    reference: LogitReader, model: LogitReader, window: Window
) -> tuple[NDArray[np.float32], int]:
    """KL of each token of a window, and the number of equal first choices."""
    nats, same = [], 0
    for (_, first_NV), (_, second_NV) in zip(
        reference.read(window), model.read(window), strict=True
    ):
        nats.append(kl_nats(first_NV, second_NV).astype(np.float32))
        same += int((first_NV.argmax(axis=1) == second_NV.argmax(axis=1)).sum())
    return np.concatenate(nats), same


def _summary(nats: NDArray[np.float32], same: int) -> Divergence:
    if not np.isfinite(nats).all():
        raise VerificationError(
            f"The divergence of {int((~np.isfinite(nats)).sum())} of {len(nats)} tokens is not a "
            "number; the weights or the cut are damaged. Run `pliant verify` on the artifact."
        )
    median, p99 = np.percentile(nats, [50, 99])
    return Divergence(
        mean_nats=float(nats.mean(dtype=np.float64)),
        median_nats=float(median),
        p99_nats=float(p99),
        max_nats=float(nats.max()),
        top1_agreement=same / len(nats),
        tokens=len(nats),
    )
