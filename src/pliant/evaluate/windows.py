"""How a text is cut into windows, and how a model's logits of a window are streamed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from pliant.errors import DataError, UsageError
from pliant.runtime import Chunk, TokenModel

#: Window where none is asked for and the context is longer: what papers use, and a small cache.
DEFAULT_WINDOW = 2048
#: Logits held at a time, in bytes: small beside any model, large enough for efficient products.
_LOGITS_BYTES = 32 << 20
#: Tokens of one sequence per forward call at most.
_MOST_TOKENS = 256


class Window(msgspec.Struct, frozen=True, eq=False):
    """Tokens fed together, the tokens that follow each of them, and from where these are scored.

    `inputs[i]` is followed by `targets[i]`; both int32 `[n]`. Targets before `first_scored` only
    give context.
    """

    inputs: NDArray[np.int32]
    targets: NDArray[np.int32]
    first_scored: int

    @property
    def num_scored(self) -> int:
        """Targets that this window scores."""
        return len(self.targets) - self.first_scored


def windows(tokens: Sequence[int], start_id: int, size: int, stride: int) -> Iterator[Window]:
    """Windows that score every token of one document exactly once.

    A window feeds the start token and `size - 1` tokens of the document, which gives a prediction
    for each of `size` tokens. The next window begins `stride` tokens further and scores the
    `stride` tokens that no window before it scored; with `stride == size` windows do not overlap.
    """
    document = np.asarray(tokens, np.int32)
    for begin in range(0, len(document), stride):
        targets = document[begin : begin + size]
        first = 0 if begin == 0 else size - stride
        if first >= len(targets):
            return
        yield Window(np.concatenate(([np.int32(start_id)], targets[:-1])), targets, first)


def checked_window(model: TokenModel, window: int | None, stride: int | None) -> tuple[int, int]:
    """The window and stride to use: up to `DEFAULT_WINDOW` tokens and no overlap unless given."""
    size = min(DEFAULT_WINDOW, model.max_context) if window is None else window
    step = size if stride is None else stride
    if not 1 <= size <= model.max_context:
        raise UsageError(
            f"A window of {size} tokens was asked for; the model's context allows 1 to "
            f"{model.max_context}."
        )
    if not 1 <= step <= size:
        raise UsageError(f"A stride of {step} tokens was asked for; the window allows 1 to {size}.")
    return size, step


def checked_start(start_id: int | None) -> int:
    """The start token, which the first token of a text is predicted from."""
    if start_id is None:
        raise DataError(
            "This model has neither a BOS nor an EOS token, so nothing predicts the first token "
            "of a text; set bos_token in tokenizer_config.json."
        )
    return start_id


class LogitReader:
    """Logits of a model for one window after another, a few rows at a time, in one cache."""

    def __init__(self, model: TokenModel, window: int) -> None:
        self._model = model
        self._cache = model.new_cache(window)
        rows = _LOGITS_BYTES // (4 * model.vocab_size)
        self.rows = max(1, min(rows, _MOST_TOKENS, window))

    def read(self, window: Window) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """Places in the window and their logits, float32 `[places, vocabulary]`, in order."""
        self._cache.truncate(0)
        for begin in range(0, len(window.inputs), self.rows):
            part = slice(begin, min(begin + self.rows, len(window.inputs)))
            # What only gives context needs no logits.
            if part.stop <= window.first_scored:
                self._forward(window.inputs[part], "none")
                continue
            yield part, self._forward(window.inputs[part], "all")

    def _forward(self, inputs: NDArray[np.int32], logits: str) -> NDArray[np.float32]:
        chunk = Chunk(inputs, self._cache, logits=logits)  # type: ignore[arg-type]
        return self._model.forward_chunk([chunk])[0]


def log_probabilities(logits_NV: NDArray[np.float32]) -> NDArray[np.float64]:
    """Natural logarithm of softmax over the last axis, in fp64."""
    shifted_NV = logits_NV.astype(np.float64)
    shifted_NV -= shifted_NV.max(axis=-1, keepdims=True)
    shifted_NV -= np.log(np.exp(shifted_NV).sum(axis=-1, keepdims=True))
    return shifted_NV
