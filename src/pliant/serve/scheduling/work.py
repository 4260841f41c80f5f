"""What a scheduler is given and what it answers: `Work`, `Limits`, `Plan` and its parts."""

from __future__ import annotations

from typing import Literal

import msgspec

from pliant.errors import PliantError, UsageError

#: Why a sequence left the scheduler without being finished by its runner.
Expiry = Literal["deadline"]


class TooBusyError(PliantError):
    """Too much is waiting already; `retry_after` seconds is when to ask again."""

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """The bounds a scheduler keeps; `UsageError` for those that cannot be.

    - `cache_bytes`: of all caches together, those kept for their prefixes included. Never passed.
    - `max_sequences`: run at the same time; `max_waiting`: wait for a place, of all clients and
      `max_waiting_per_client` of one.
    - `page_tokens`: capacities of caches are multiples of it (or the model's context).
    - `step_nanoseconds`: what a step should take; `max_step_tokens` bounds it in tokens, and
      `min_prefill_tokens` of a prompt are computed however many others are decoding.
    - `max_logit_rows`: rows of prompt logits in one step, for sequences that ask for them.
    """

    cache_bytes: int
    max_sequences: int = 16
    max_waiting: int = 256
    max_waiting_per_client: int = 128
    page_tokens: int = 16
    step_nanoseconds: int = 50_000_000
    max_step_tokens: int = 256
    min_prefill_tokens: int = 16
    max_logit_rows: int = 64

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if value < 1:
                raise UsageError(f"{name} is {value}; it must be 1 or more.")
        if self.max_sequences > self.max_step_tokens:
            raise UsageError(
                f"{self.max_sequences} sequences do not fit into steps of {self.max_step_tokens} "
                "tokens; run fewer at a time."
            )


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """One sequence to be written.

    `name` is its own; `lane` the subnet that runs it; `prompt` at least one token; at most
    `max_tokens` are written. Prefixes are shared only between works of one `salt`.
    `prompt_logits` asks for the logits behind every token of the prompt, so no prefix is reused.
    `deadline` is a time of the caller's clock in nanoseconds. A work that names a `leader` begins
    when that one's prompt is computed, and so shares it.
    """

    name: str
    client: str
    lane: str
    prompt: tuple[int, ...]
    max_tokens: int
    salt: str = ""
    prompt_logits: bool = False
    deadline: int | None = None
    leader: str | None = None


class Make(msgspec.Struct, frozen=True):
    """A new empty cache of a lane."""

    cache: int
    lane: str
    capacity: int


class Copy(msgspec.Struct, frozen=True):
    """A new cache with the first `length` tokens of another."""

    cache: int
    source: int
    length: int
    capacity: int


class Take(msgspec.Struct, frozen=True):
    """An existing cache is used on, cut to its first `length` tokens."""

    cache: int
    length: int


class Drop(msgspec.Struct, frozen=True):
    """A cache is given back."""

    cache: int


CacheMove = Make | Copy | Take | Drop


class Slice(msgspec.Struct, frozen=True):
    """Tokens `[begin, end)` of a sequence to append to its cache.

    `tokens` are they; `chooses` says that the next token follows from the logits of the last one;
    `all_logits` that the logits behind each are wanted.
    """

    name: str
    cache: int
    begin: int
    tokens: tuple[int, ...]
    chooses: bool
    all_logits: bool

    @property
    def end(self) -> int:
        """Tokens in the cache afterwards."""
        return self.begin + len(self.tokens)

    def next(self, token: int, steps: int = 1) -> Slice:
        """The slice that follows when `steps` steps, this one and those behind it, have chosen as
        many tokens, `token` the last."""
        begin = self.end + steps - 1
        return Slice(self.name, self.cache, begin, (token,), chooses=True, all_logits=False)


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """One step: do `moves` in their order, then compute `slices` of `lane` together.

    Where `steps` is above 1, so many may follow one another as long as nobody comes, goes or ends:
    each computes the token that every slice chose in the one before. `expired` are the names of
    works whose deadline has passed; they are gone already. A plan may hold moves alone.
    """

    lane: str
    moves: tuple[CacheMove, ...] = ()
    slices: tuple[Slice, ...] = ()
    expired: tuple[str, ...] = ()
    steps: int = 1

    @property
    def num_tokens(self) -> int:
        """Tokens computed by each step."""
        return sum(len(part.tokens) for part in self.slices)


class Counts(msgspec.Struct, kw_only=True):
    """What a scheduler has done since it was made, in tokens and events."""

    prompt_tokens: int = 0
    reused_tokens: int = 0
    recomputed_tokens: int = 0
    written_tokens: int = 0
    prefix_hits: int = 0
    preemptions: int = 0
    evictions: int = 0
    expired: int = 0
    refused: int = 0
    steps: int = 0
