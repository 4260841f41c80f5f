"""`Sampler`: from logits to the next token, the same one on every run.

The steps and their order are those of `transformers`: repetition penalty, temperature, top-k,
top-p, min-p, draw.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import msgspec
import numpy as np
from numpy.typing import NDArray

from pliant.errors import GenerationError

#: Tokens looked at first when top-p searches its nucleus; times eight until they hold the mass.
_FIRST_NUCLEUS = 64


class SamplingOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How tokens are chosen and when a text ends. Checked when made (`GenerationError`).

    - `temperature` divides the logits; 0 is greedy: always the likeliest token, the lowest id
      among equals.
    - `top_k` keeps the k likeliest tokens (0: all), ties with the last one included.
    - `top_p` keeps the likeliest tokens that together reach this probability (nucleus sampling,
      arXiv 1904.09751); 1 keeps all.
    - `min_p` keeps tokens at least this many times as likely as the likeliest (arXiv 2407.01082).
    - `repetition_penalty` divides positive and multiplies negative logits of tokens that are in
      the prompt or the text already (CTRL, arXiv 1909.05858); 1 is none.
    - `seed` decides the draws; the same seed gives the same text.
    - `max_tokens` is the most tokens written; `stop` are texts that end it and are not written.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    max_tokens: int = 256
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        given: object = self.stop
        stop = (given,) if isinstance(given, str) else tuple(self.stop)
        msgspec.structs.force_setattr(self, "stop", stop)
        self._require("temperature", 0 <= self.temperature < math.inf, "0 (greedy) or more")
        self._require("top_k", _is_count(self.top_k), "a whole number from 0 (all tokens) on")
        self._require("top_p", 0 < self.top_p <= 1, "above 0 and up to 1")
        self._require("min_p", 0 <= self.min_p <= 1, "from 0 to 1")
        positive = 0 < self.repetition_penalty < math.inf
        self._require("repetition_penalty", positive, "above 0; 1 is none")
        in_64_bits = _is_count(self.seed) and self.seed < 2**64
        self._require("seed", in_64_bits, "a whole number from 0 to 2^64 - 1")
        some = _is_count(self.max_tokens) and self.max_tokens >= 1
        self._require("max_tokens", some, "a whole number from 1 on")
        texts = all(isinstance(text, str) and text for text in self.stop)
        self._require("stop", texts, "one or more texts that are not empty")

    def _require(self, name: str, holds: bool, rule: str) -> None:
        # A NaN fails every comparison, so it ends here too.
        if not holds:
            raise GenerationError(f"{name} is {getattr(self, name)!r}; it must be {rule}.")


class Sampler:
    """Chooses the tokens of one sequence.

    The draw of step t uses word t of the stream of a counter-based generator keyed by the seed
    (Philox: Salmon et al., SC 2011), so neither other sequences nor earlier logits decide it.
    """

    def __init__(self, options: SamplingOptions, prompt: Iterable[int] = ()) -> None:
        self.options = options
        self._random = np.random.Philox(key=options.seed)
        self._penalized = options.repetition_penalty != 1
        self._seen = np.unique(np.fromiter(prompt, np.int64)) if self._penalized else None

    def sample(self, logits_V: NDArray[np.float32]) -> int:
        """The next token id, given the float32 logits `[vocabulary]` behind the text so far.

        Raises `GenerationError` where the logits hold NaN or +inf.
        """
        scores_V = self._penalize(logits_V)
        # argmax gives the first of equals, and the first NaN where there is one.
        best = int(np.argmax(scores_V))
        if not np.isfinite(scores_V[best]):
            raise GenerationError(
                f"The model gave the logit {scores_V[best]} for token {best}; its weights or its "
                "cut are damaged. Run `pliant verify` on the artifact."
            )
        token = best if self.options.temperature == 0 else self._draw(scores_V)
        if self._seen is not None:
            self._seen = np.union1d(self._seen, [token])
        return token

    def _penalize(self, logits_V: NDArray[np.float32]) -> NDArray[np.float32]:
        if self._seen is None or not self._seen.size:
            return logits_V
        penalty = np.float32(self.options.repetition_penalty)
        scores_V = logits_V.copy()
        seen = scores_V[self._seen]
        scores_V[self._seen] = np.where(seen < 0, seen * penalty, seen / penalty)
        return scores_V

    def _draw(self, scores_V: NDArray[np.float32]) -> int:
        ids, probabilities = distribution(scores_V, self.options)
        cumulative = np.cumsum(probabilities, dtype=np.float64)
        place = np.searchsorted(cumulative, self._uniform() * cumulative[-1], side="right")
        return int(ids[min(int(place), len(ids) - 1)])

    def _uniform(self) -> float:
        """The next number in [0, 1), in steps of 2^-53; one for each token drawn."""
        return (int(self._random.random_raw()) >> 11) * 2.0**-53


def distribution(
    scores_V: NDArray[np.float32], options: SamplingOptions
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The tokens that may be drawn, ids ascending, and their probabilities, which sum to 1.

    `scores_V` are float32 logits `[vocabulary]` after the repetition penalty, -inf for tokens that
    are excluded; `options.temperature` is above 0. Probabilities are float32.
    """
    kept = _top_k(scores_V, options.top_k)
    weights = scores_V[kept]
    weights -= weights.max()
    weights /= np.float32(options.temperature)
    np.exp(weights, out=weights)
    kept, weights = _nucleus(weights, kept, options.top_p)
    # The likeliest token has weight 1.
    if options.min_p > 0:
        likely = weights >= np.float32(options.min_p)
        kept, weights = kept[likely], weights[likely]
    return kept, weights / weights.sum(dtype=np.float64).astype(np.float32)


def _top_k(scores_V: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Ids, ascending, of the `k` largest scores and of those equal to the last of them."""
    if not 0 < k < len(scores_V):
        return np.arange(len(scores_V))
    place = len(scores_V) - k
    return np.flatnonzero(scores_V >= np.partition(scores_V, place)[place])


def _nucleus(
    weights: NDArray[np.float32], ids: NDArray[np.int64], top_p: float
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Those of `ids`, ascending, that are the likeliest and have less than `top_p` before them.

    `weights` are those of `ids`; the kept ones' are returned beside them.

    Weights below `(1 - top_p) / n` of the sum of all n cannot belong: together they stay below
    `1 - top_p`. Of the others only as many as needed are put in order, because a nucleus is small
    beside a vocabulary.
    """
    if top_p >= 1:
        return ids, weights
    total = float(weights.sum(dtype=np.float64))
    # Half, so that rounding cannot exclude a token at the edge.
    likely = np.flatnonzero(weights >= np.float32(0.5 * (1 - top_p) * total / len(ids)))
    ids, weights = ids[likely], weights[likely]
    falling = -weights.astype(np.float64)
    size = _FIRST_NUCLEUS
    while True:
        size = min(size, len(ids))
        order = np.argpartition(falling, size - 1)[:size]
        # Among equals the lower id goes first.
        order = order[np.lexsort((order, falling[order]))]
        before = falling[order] - np.cumsum(falling[order])
        inside = before < top_p * total
        if size == len(ids) or not inside[-1]:
            kept = np.sort(order[inside])
            return ids[kept], weights[kept]
        size *= 8


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
