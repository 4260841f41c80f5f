"""`Sampler`: from logits to the next token, the same one on every run.

The steps and their order are those of `transformers`: repetition penalty, temperature, top-k,
top-p, min-p, draw. `native/ops/sampling.h` carries them out; `tests/runtime/numpy_sampler.py` says
the same in NumPy.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from types import MappingProxyType

import msgspec
import numpy as np
from numpy.typing import NDArray

from pliant import _native
from pliant.errors import GenerationError
from pliant.runtime.kernel_path import kernel_path

_LARGEST_ID = 2**31 - 1


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
    """Chooses the tokens of one sequence. Not to be shared by threads.

    The draw of step t uses word t of the stream of a counter-based generator keyed by the seed
    (Philox: Salmon et al., SC 2011), so neither other sequences nor earlier logits decide it. It is
    the token at which the cumulative distribution, by ascending ids, passes the number drawn.

    Before all that `logit_bias` is added to the logits of tokens; `presence_penalty` is taken from
    each token that was written before and `frequency_penalty` as often as it was (OpenAI's
    definition: the prompt does not count); `excluded` tokens are never chosen. `GenerationError`
    for token ids that no model has.
    """

    def __init__(
        self,
        options: SamplingOptions,
        prompt: Iterable[int] = (),
        *,
        logit_bias: Mapping[int, float] = MappingProxyType({}),
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        excluded: Iterable[int] = (),
    ) -> None:
        self.options = options
        self._random = np.random.Philox(key=options.seed)
        #: Numbers that were looked at and not used yet.
        self._numbers: list[float] = []
        #: What draws; with a number of `numbers` each, which `skip` then counts as used.
        self.native = _native.Sampler(
            kernel_path(),
            temperature=options.temperature,
            top_k=min(options.top_k, _LARGEST_ID),
            top_p=options.top_p,
            min_p=options.min_p,
            repetition_penalty=options.repetition_penalty,
            presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty,
            biased=_ids(logit_bias),
            biases=np.fromiter(logit_bias.values(), np.float32),
            excluded=_ids(excluded),
            seen=_ids(prompt if options.repetition_penalty != 1 else ()),
        )

    def sample(
        self, logits_V: NDArray[np.float32], allowed: NDArray[np.uint32] | None = None
    ) -> int:
        """The next token id, given the float32 logits `[vocabulary]` behind the text so far.

        `allowed` has a bit for each token that may come, the lowest first, `[words]`. Raises
        `GenerationError` where the logits hold NaN or +inf, or nothing is allowed.
        """
        token = self.native.sample(logits_V, self.numbers(1)[0], allowed)
        self.skip(1)
        return token

    def numbers(self, count: int) -> list[float]:
        """The next numbers, in [0, 1) and steps of 2^-53, one for each token drawn; greedy texts
        need none and have zeros.
        """
        if self.options.temperature == 0:
            return [0.0] * count
        if count > len(self._numbers):
            words = self._random.random_raw(count - len(self._numbers))
            self._numbers += ((words >> np.uint64(11)) * 2.0**-53).tolist()
        return self._numbers[:count]

    def skip(self, count: int) -> None:
        """So many of the next numbers are used."""
        del self._numbers[:count]


def log_probabilities(
    logits_V: NDArray[np.float32], token: int, count: int
) -> tuple[float, list[tuple[int, float]]]:
    """Natural log-probabilities of `token` and of the `count` likeliest tokens, falling.

    The lower id is first among equals. Logits are float32 `[vocabulary]`; `GenerationError` where
    they hold NaN or +inf.
    """
    return _native.log_probabilities(kernel_path(), logits_V, token, count)


def _ids(tokens: Iterable[int]) -> NDArray[np.int32]:
    """Token ids as the engine takes them."""
    ids = np.fromiter(tokens, np.int64)
    outside = ids[(ids < 0) | (ids > _LARGEST_ID)]
    if outside.size:
        raise GenerationError(f"Token {outside[0]} is in no vocabulary; ids go from 0 on.")
    return ids.astype(np.int32)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
