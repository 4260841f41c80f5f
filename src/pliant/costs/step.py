"""`Step`: what passes through a model at once, whose cost is asked for; and what its tokens see."""

from __future__ import annotations

from collections import Counter

import msgspec

from pliant.errors import UsageError

#: Tokens that the engine takes through the blocks together at most (native/engine/step.h).
MOST_STEP_TOKENS = 256


class Step(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`tokens` new tokens of each of `sequences`, behind `cached` tokens of their own.

    `logits` of the last tokens of each sequence are wanted: all where a tree is verified. `parents`
    makes a tree of the tokens: token n looks at the cached ones, at itself and at its ancestors,
    parent by parent; -1 is the last cached token. None is a chain, which is causal attention.
    Raises `UsageError` where no engine could run it.
    """

    tokens: int = 1
    cached: int = 0
    sequences: int = 1
    logits: int = 1
    parents: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.tokens < 1 or self.sequences < 1 or self.cached < 0:
            raise UsageError(
                f"A step of {self.tokens} tokens of {self.sequences} sequences behind "
                f"{self.cached} cannot run; tokens and sequences are 1 or more, cached 0 or more."
            )
        if not 0 <= self.logits <= self.tokens:
            raise UsageError(
                f"{self.logits} logits of {self.tokens} tokens were asked for; use 0 to all."
            )
        if self.parents is not None:
            if len(self.parents) != self.tokens:
                raise UsageError(f"{len(self.parents)} parents for {self.tokens} tokens.")
            wrong = [n for n, parent in enumerate(self.parents) if not -1 <= parent < n]
            if wrong:
                raise UsageError(f"Token {wrong[0]} of a tree must come behind its parent.")

    @classmethod
    def decode(cls, context: int, sequences: int = 1) -> Step:
        """One token of each sequence behind `context` cached ones."""
        return cls(cached=context, sequences=sequences)

    @classmethod
    def verify(cls, parents: tuple[int, ...], context: int) -> Step:
        """A tree of guesses behind `context` cached tokens; logits of every node are wanted."""
        return cls(tokens=len(parents), cached=context, logits=len(parents), parents=parents)

    @property
    def num_tokens(self) -> int:
        """Tokens of all sequences: rows of every product but the head's."""
        return self.tokens * self.sequences

    @property
    def num_logits(self) -> int:
        """Rows of logits of all sequences."""
        return self.logits * self.sequences

    def depths(self) -> dict[int, int]:
        """How many tokens of one sequence have so many of the step's tokens as ancestors."""
        if self.parents is None:
            return dict.fromkeys(range(self.tokens), 1)
        depth: list[int] = []
        for parent in self.parents:
            depth.append(0 if parent < 0 else depth[parent] + 1)
        return dict(Counter(depth))

    def visible(self, window: int = 0) -> int:
        """Entries that the tokens of one sequence look at, summed over them, themselves included.

        `window` tokens are visible to each; 0 shows all. This is causal attention counted as such:
        half of `tokens` squared where nothing is cached.
        """
        if self.parents is None:
            return _chain_visible(self.tokens, self.cached, window)
        seen = ((self.cached + depth + 1, count) for depth, count in self.depths().items())
        return sum(count * (min(entries, window) if window else entries) for entries, count in seen)

    def cached_read(self, window: int = 0) -> int:
        """Cached entries of one sequence that any of its tokens looks at: read once by a step."""
        # The first token of a step reaches furthest back.
        return min(self.cached, window - 1) if window else self.cached


def _chain_visible(tokens: int, cached: int, window: int) -> int:
    """Sum over n < tokens of min(cached + n + 1, window)."""
    growing = tokens if window == 0 else min(max(window - cached, 0), tokens)
    full = tokens - growing
    return growing * cached + growing * (growing + 1) // 2 + full * window


def prefill_steps(tokens: int, chunk: int = 128, cached: int = 0, sequences: int = 1) -> list[Step]:
    """The steps of a prompt of `tokens` tokens cut into chunks; logits are of its last token.

    `chunk` is what the runtime takes at a time (128); a chunk of all tokens is unchunked prefill.
    """
    if tokens < 1 or chunk < 1:
        raise UsageError(f"{tokens} tokens in chunks of {chunk}; both are 1 or more.")
    steps = []
    for begin in range(0, tokens, chunk):
        size = min(chunk, tokens - begin)
        last = begin + size == tokens
        steps.append(
            Step(tokens=size, cached=cached + begin, sequences=sequences, logits=int(last))
        )
    return steps
