"""From a prompt to text: `generate`, `stream` and `generate_batch` on any `TokenModel`.

All three run the same loop; one sequence is a batch of one, so a sequence reads the same whoever
it shares a batch with.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from pliant.errors import GenerationError, UsageError
from pliant.runtime.chunk import Chunk
from pliant.runtime.model import TokenModel
from pliant.runtime.sampling import Sampler, SamplingOptions
from pliant.runtime.stop_strings import StopStrings
from pliant.runtime.tokenizer import Tokenizer

#: An end token, a stop string, `max_tokens` reached, or the model's context full.
FinishReason = Literal["stop", "stop_string", "length", "context"]

#: Prompt tokens of one sequence per forward call: enough to use the arithmetic, little scratch.
PREFILL_TOKENS = 128
#: Sequences of one batch that hold a cache at the same time; others wait for a place.
MAX_SEQUENCES = 8


class Piece(msgspec.Struct, frozen=True):
    """One step of a stream: the token written and the text that became certain with it.

    `text` is often empty while a character or a stop string is undecided. `finish_reason` is
    given with the last piece only.
    """

    token: int
    text: str
    finish_reason: FinishReason | None = None


class Timings(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds from the first call for a sequence to its first token, and from there to its last."""

    first_token_seconds: float
    decode_seconds: float
    decode_tokens: int

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second after the first one; 0 where there was only one."""
        return self.decode_tokens / self.decode_seconds if self.decode_seconds > 0 else 0.0


class Generation(msgspec.Struct, frozen=True, kw_only=True):
    """A finished text.

    `tokens` are all tokens that were chosen, the end token and those of a stop string included;
    `text` is what they say without these. `prompt_tokens` is the length of the prompt.
    """

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    prompt_tokens: int
    timings: Timings

    def __str__(self) -> str:
        return self.text


class TextStream:
    """An iterator over the `Piece`s of one sequence; `generation` is the whole, once it is done."""

    def __init__(self, pieces: Iterator[Piece], sequence: _Sequence) -> None:
        self._pieces = pieces
        self._sequence = sequence

    def __iter__(self) -> Iterator[Piece]:
        return self._pieces

    def __next__(self) -> Piece:
        return next(self._pieces)

    @property
    def generation(self) -> Generation:
        """The finished text; the stream is run to its end first."""
        for _ in self._pieces:
            pass
        return self._sequence.result()


def stream(
    model: TokenModel,
    tokenizer: Tokenizer,
    prompt: str | Sequence[int],
    options: SamplingOptions | None = None,
    *,
    continues: bool = True,
) -> TextStream:
    """Write on from `prompt`, a text or its token ids, piece by piece.

    `continues` keeps the space before the first word, so that prompt and text join; an answer in
    a chat does not continue a text. An empty prompt begins at BOS. Raises `GenerationError` where
    the prompt does not fit into the model's context or holds an id outside its vocabulary.
    """
    tokens = prompt_tokens(model, tokenizer, prompt)
    sequence = _Sequence(model, tokenizer, tokens, options or SamplingOptions(), continues)
    return TextStream((piece for _, piece in _run(model, [sequence])), sequence)


def generate(
    model: TokenModel,
    tokenizer: Tokenizer,
    prompt: str | Sequence[int],
    options: SamplingOptions | None = None,
) -> Generation:
    """The whole text that `stream` gives in pieces; the same errors."""
    return stream(model, tokenizer, prompt, options).generation


def generate_batch(
    model: TokenModel,
    tokenizer: Tokenizer,
    prompts: Sequence[str | Sequence[int]],
    options: SamplingOptions | Sequence[SamplingOptions] | None = None,
    *,
    max_sequences: int = MAX_SEQUENCES,
) -> list[Generation]:
    """One `Generation` per prompt, each equal to that of `generate` with the same options.

    `options` are one for all or one for each; `max_sequences` of them run at the same time and
    share forward calls. Raises what `stream` raises, before anything is computed.
    """
    options = options or SamplingOptions()
    each = [options] * len(prompts) if isinstance(options, SamplingOptions) else list(options)
    if len(each) != len(prompts) or max_sequences < 1:
        raise UsageError(
            f"{len(prompts)} prompts came with {len(each)} options to run {max_sequences} at a "
            "time; give one set of options or one per prompt, and at least 1 at a time."
        )
    sequences = [
        _Sequence(model, tokenizer, prompt_tokens(model, tokenizer, prompt), choice, True)
        for prompt, choice in zip(prompts, each, strict=True)
    ]
    for _ in _run(model, sequences, max_sequences):
        pass
    return [sequence.result() for sequence in sequences]


def prompt_tokens(
    model: TokenModel, tokenizer: Tokenizer, prompt: str | Sequence[int]
) -> list[int]:
    """The ids of a prompt, checked against the model: not empty, in its vocabulary and context."""
    tokens = tokenizer.encode(prompt) if isinstance(prompt, str) else [int(t) for t in prompt]
    if not tokens:
        if tokenizer.start_id is None:
            raise GenerationError(
                "The prompt is empty and this model has no token that begins a text; "
                "give at least one word."
            )
        tokens = [tokenizer.start_id]
    if len(tokens) > model.max_context:
        raise GenerationError(
            f"The prompt has {len(tokens)} tokens and the model's context is {model.max_context}; "
            f"shorten the prompt by {len(tokens) - model.max_context} tokens."
        )
    outside = [token for token in tokens if not 0 <= token < model.vocab_size]
    if outside:
        raise GenerationError(
            f"Token {outside[0]} of the prompt is not among the model's {model.vocab_size}; "
            "use the tokenizer that belongs to the model."
        )
    return tokens


class _Sequence:
    """One text being written: its cache, its sampler, and what it may show."""

    def __init__(
        self,
        model: TokenModel,
        tokenizer: Tokenizer,
        prompt: list[int],
        options: SamplingOptions,
        continues: bool,
    ) -> None:
        self._options = options
        self._eos_ids = tokenizer.eos_ids
        self._max_context = model.max_context
        self._prompt_length = len(prompt)
        self._pending = np.asarray(prompt, np.int32)
        self._sampler = Sampler(options, prompt)
        self._decoder = tokenizer.decoder(continues=continues)
        self._stops = StopStrings(options.stop)
        self._tokens: list[int] = []
        self._texts: list[str] = []
        self._started = self._first = self._last = 0.0
        self._finish_reason: FinishReason | None = None

    @property
    def finished(self) -> bool:
        return self._finish_reason is not None

    def begin(self, model: TokenModel) -> None:
        """Take a cache; it never holds the last token, which nothing follows."""
        self._started = time.perf_counter()
        needed = self._prompt_length + self._options.max_tokens - 1
        self._cache = model.new_cache(min(needed, self._max_context))

    def end(self) -> None:
        """Give the cache back."""
        del self._cache

    def next_chunk(self) -> Chunk:
        """The tokens to compute next; logits are asked for behind the last pending one."""
        now, self._pending = self._pending[:PREFILL_TOKENS], self._pending[PREFILL_TOKENS:]
        return Chunk(now, self._cache, logits="none" if self._pending.size else "last")

    def accept(self, logits: NDArray[np.float32]) -> Piece | None:
        """Choose the next token from `logits` `[0 or 1, vocabulary]`; None during the prompt."""
        return None if self._pending.size else self._write(self._sampler.sample(logits[-1]))

    @property
    def is_greedy(self) -> bool:
        """Whether the next token is that of the largest logit, whatever the text so far."""
        return self._options.temperature == 0 and self._options.repetition_penalty == 1

    def accept_token(self, chosen: NDArray[np.int32]) -> Piece | None:
        """Take the likeliest token `[0 or 1]`, for a greedy sequence; None during the prompt."""
        return None if self._pending.size else self._write(int(chosen[-1]))

    def _write(self, token: int) -> Piece:
        self._tokens.append(token)
        self._pending = np.asarray([token], np.int32)
        self._last = time.perf_counter()
        if len(self._tokens) == 1:
            self._first = self._last
        text = "" if token in self._eos_ids else self._stops.push(self._decoder.push(token))
        self._finish_reason = self._end_reason(token)
        if self.finished and not self._stops.found:
            text += self._stops.push(self._decoder.finish())
        if self.finished and not self._stops.found:
            text += self._stops.finish()
        self._texts.append(text)
        return Piece(token, text, self._finish_reason)

    def _end_reason(self, token: int) -> FinishReason | None:
        if token in self._eos_ids:
            return "stop"
        if self._stops.found:
            return "stop_string"
        if len(self._tokens) >= self._options.max_tokens:
            return "length"
        # The token just chosen would need the place behind the last.
        full = self._prompt_length + len(self._tokens) > self._max_context
        return "context" if full else None

    def result(self) -> Generation:
        """What was written; only for a finished sequence."""
        if self._finish_reason is None:
            raise GenerationError("The text is not finished, because its stream was closed early.")
        return Generation(
            text="".join(self._texts),
            tokens=tuple(self._tokens),
            finish_reason=self._finish_reason,
            prompt_tokens=self._prompt_length,
            timings=Timings(
                first_token_seconds=self._first - self._started,
                decode_seconds=self._last - self._first,
                decode_tokens=len(self._tokens) - 1,
            ),
        )


def _run(
    model: TokenModel, sequences: Sequence[_Sequence], max_sequences: int = 1
) -> Iterator[tuple[_Sequence, Piece]]:
    """Advance all sequences together until each is finished; a free place is taken at once."""
    waiting, running = list(sequences), list[_Sequence]()
    while waiting or running:
        while waiting and len(running) < max_sequences:
            running.append(waiting.pop(0))
            running[-1].begin(model)
        chunks = [sequence.next_chunk() for sequence in running]
        for sequence, piece in _advance(model, running, chunks):
            if piece is not None:
                yield sequence, piece
        for sequence in [sequence for sequence in running if sequence.finished]:
            sequence.end()
            running.remove(sequence)


def _advance(
    model: TokenModel, running: list[_Sequence], chunks: list[Chunk]
) -> Iterator[tuple[_Sequence, Piece | None]]:
    """One forward call for all; without logits where the model screens its head and none draws."""
    if getattr(model, "head_screen", 0) and all(sequence.is_greedy for sequence in running):
        screened: Any = model
        for sequence, chosen in zip(running, screened.greedy(chunks), strict=True):
            yield sequence, sequence.accept_token(chosen)
    else:
        for sequence, logits in zip(running, model.forward_chunk(chunks), strict=True):
            yield sequence, sequence.accept(logits)
