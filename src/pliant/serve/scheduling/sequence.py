"""`Sequence`: a work as the scheduler follows it."""

from __future__ import annotations

from pliant.serve.scheduling.pool import Holding, Lane
from pliant.serve.scheduling.work import Slice, Work


class Sequence:
    """The tokens of one work, how many are in a cache, and its place in the order of arrival.

    At least one token is always still to be computed: the last of the prompt, or the one written
    last.
    """

    def __init__(self, work: Work, lane: Lane, order: int) -> None:
        self.work, self.lane, self.order = work, lane, order
        self.tokens = list(work.prompt)
        self.holding: Holding | None = None
        #: Tokens taken from a prefix when it first started; None before that.
        self.reused: int | None = None
        #: When it first got a cache; 0 before that.
        self.admitted = 0
        #: Tokens that were computed once, so that computing them again is nobody's debt.
        self.charged = 0

    @property
    def computed(self) -> int:
        """Tokens in its cache."""
        return len(self.holding.tokens) if self.holding else 0

    @property
    def pending(self) -> int:
        """Tokens still to be computed, at least one."""
        return len(self.tokens) - self.computed

    @property
    def written(self) -> int:
        """Tokens written so far."""
        return len(self.tokens) - len(self.work.prompt)

    @property
    def bound(self) -> int:
        """Most tokens its cache will ever hold: the last one written needs no place."""
        return min(len(self.work.prompt) + self.work.max_tokens - 1, self.lane.max_context)

    @property
    def steps_left(self) -> int:
        """Tokens that it can write before its cache has to grow or it is at its end."""
        assert self.holding is not None
        return min(self.holding.capacity - self.computed, self.work.max_tokens - self.written)

    def slice(self, count: int) -> Slice:
        """The next `count` tokens to compute."""
        assert self.holding is not None
        begin, end = self.computed, self.computed + count
        return Slice(
            name=self.work.name,
            cache=self.holding.cache,
            begin=begin,
            tokens=tuple(self.tokens[begin:end]),
            chooses=end == len(self.tokens),
            all_logits=self.work.prompt_logits and begin < len(self.work.prompt),
        )
