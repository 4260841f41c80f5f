"""`Writer`: one text being written, from logits to what a client may be shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from pliant.runtime.sampling import Sampler, SamplingOptions, log_probabilities
from pliant.runtime.stop_strings import StopStrings
from pliant.runtime.tokenizer import Tokenizer
from pliant.serve.grammar import Grammar

#: Why a text ended: an end token, stop string or complete JSON; `max_tokens` or the context.
FinishReason = Literal["stop", "length"]


class WriterOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a text is written, beyond its sampling.

    `logit_bias`, `presence_penalty` and `frequency_penalty` are those of `Sampler`; `top_logprobs`
    is how many likely tokens to report beside each one, None for no log-probabilities;
    `prompt_logprobs` reports the prompt's too. `continues` says that the text goes on from its
    prompt.
    """

    sampling: SamplingOptions
    logit_bias: Mapping[int, float] = {}
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    top_logprobs: int | None = None
    prompt_logprobs: bool = False
    ignore_eos: bool = False
    continues: bool = True

    @property
    def is_plain_greedy(self) -> bool:
        """Whether each token is the likeliest, and nothing else is asked of the logits."""
        return (
            self.sampling.temperature == 0
            and self.sampling.repetition_penalty == 1
            and not self.logit_bias
            and not self.presence_penalty
            and not self.frequency_penalty
            and self.top_logprobs is None
            and not self.ignore_eos
        )


class TokenScore(msgspec.Struct, frozen=True):
    """A token, its log-probability under the model itself (None for the first of a prompt), and
    the likeliest tokens in its place with theirs.
    """

    token: int
    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()


class Emission(msgspec.Struct, kw_only=True):
    """What one step added: a token, the text that became certain, and why it was the last one.

    `score` is that of the token if asked for, `prompt_scores` come with the first token.
    `nanoseconds` is when it was told; with the first come `reused_tokens`, how much of the prompt
    was in a kept prefix, and `admitted`, the nanoseconds at which the text had a place. All three
    are for the engine room to fill in, before anybody else sees it.
    """

    token: int
    text: str
    finish_reason: FinishReason | None = None
    stop: str | None = None
    score: TokenScore | None = None
    prompt_scores: tuple[TokenScore, ...] = ()
    nanoseconds: int = 0
    reused_tokens: int = 0
    admitted: int = 0


class Writer:
    """Chooses tokens of one sequence and turns them into text. Not to be shared by threads."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        options: WriterOptions,
        max_context: int,
        grammar: Grammar | None = None,
    ) -> None:
        self.options = options
        self._prompt = tuple(prompt)
        self._max_context = max_context
        self._grammar = grammar
        self._eos_ids = tokenizer.eos_ids
        self._sampler = Sampler(
            options.sampling,
            prompt,
            logit_bias=options.logit_bias,
            presence_penalty=options.presence_penalty,
            frequency_penalty=options.frequency_penalty,
            excluded=tokenizer.eos_ids if options.ignore_eos else (),
        )
        self._decoder = tokenizer.decoder(continues=options.continues)
        self._stops = StopStrings(options.sampling.stop)
        self._max_tokens = options.sampling.max_tokens
        self._is_plain_greedy = grammar is None and options.is_plain_greedy
        self._num_written = 0
        self._prompt_scores: list[TokenScore] = []
        if options.prompt_logprobs:
            self._prompt_scores.append(TokenScore(self._prompt[0], None))

    @property
    def is_plain_greedy(self) -> bool:
        """Whether the likeliest token is all that `accept_token` needs."""
        return self._is_plain_greedy

    @property
    def sampler(self) -> Sampler | None:
        """What chooses each token, whatever else is known of it; None where a grammar or
        log-probabilities have a say.
        """
        free = self._grammar is None and self.options.top_logprobs is None
        return self._sampler if free else None

    @property
    def end_ids(self) -> frozenset[int]:
        """The tokens that end the text."""
        return self._eos_ids

    def read_prompt(self, begin: int, logits_TV: NDArray[np.float32]) -> None:
        """Note the scores of the prompt from logits behind its tokens `begin` on.

        What was noted before (a prompt may be computed twice) is passed over.
        """
        for place, logits_V in enumerate(logits_TV, begin + 1):
            if place == len(self._prompt_scores) and place < len(self._prompt):
                self._prompt_scores.append(self._score(logits_V, self._prompt[place]))

    def accept(self, logits_V: NDArray[np.float32]) -> Emission:
        """Choose the next token from float32 logits `[vocabulary]`.

        `GenerationError` where the logits are not finite or the grammar is at an end.
        """
        allowed = None if self._grammar is None else self._grammar.allowed()
        token = self._sampler.sample(logits_V, allowed)
        score = None if self.options.top_logprobs is None else self._score(logits_V, token)
        return self._write(token, score)

    def accept_token(self, token: int) -> Emission:
        """Take a token: the likeliest, for a writer that is plain greedy, or what its `sampler` has
        drawn.
        """
        return self._write(token, None)

    def _score(self, logits_V: NDArray[np.float32], token: int) -> TokenScore:
        logprob, top = log_probabilities(logits_V, token, self.options.top_logprobs or 0)
        return TokenScore(token, logprob, tuple(top))

    def _write(self, token: int, score: TokenScore | None) -> Emission:
        self._num_written += 1
        ends = token in self._eos_ids
        if self._grammar is not None:
            self._grammar.accept(token)
        text = "" if ends else self._stops.push(self._decoder.push(token))
        complete = self._grammar is not None and self._grammar.is_complete
        reason: FinishReason | None = None
        if ends or self._stops.found or complete:
            reason = "stop"
        elif self._num_written >= self._max_tokens or self._is_full():
            reason = "length"
        if reason and not self._stops.found:
            text += self._stops.push(self._decoder.finish())
            text += "" if self._stops.found else self._stops.finish()
        scores: tuple[TokenScore, ...] = ()
        if self._prompt_scores:
            scores, self._prompt_scores = tuple(self._prompt_scores), []
        return Emission(
            token=token, text=text, finish_reason=reason, score=score, prompt_scores=scores
        )

    def _is_full(self) -> bool:
        # The token just chosen would need the place behind the last.
        return len(self._prompt) + self._num_written > self._max_context
