"""`StepPace`: how many tokens a step may hold to take the time it should."""

from __future__ import annotations

#: What an observation keeps of its weight with each that follows: about the last fifty count.
_MEMORY = 0.98


class StepPace:
    """Learns nanoseconds per step as `a + b * tokens` and inverts it.

    Least squares over the observed steps, older ones forgotten, so that it follows contexts as
    they grow and a machine that others use too. Never below `least` or above `most` tokens.
    """

    def __init__(self, target_nanoseconds: int, least: int, most: int) -> None:
        self._target, self._least, self._most = target_nanoseconds, least, most
        self._weight = self._x = self._y = self._xx = self._xy = 0.0

    def observe(self, tokens: int, nanoseconds: int) -> None:
        """A step of `tokens` tokens took so long."""
        self._weight = self._weight * _MEMORY + 1
        self._x = self._x * _MEMORY + tokens
        self._y = self._y * _MEMORY + nanoseconds
        self._xx = self._xx * _MEMORY + tokens * tokens
        self._xy = self._xy * _MEMORY + tokens * nanoseconds

    @property
    def line(self) -> tuple[float, float]:
        """`a` and `b`, neither negative; 0 and 0 before the first step."""
        if not self._x:
            return 0.0, 0.0
        spread = self._weight * self._xx - self._x * self._x
        # Steps that were all alike say nothing about the slope: take all time as per token.
        if spread > 1e-9 * self._xx * self._weight:
            slope = (self._weight * self._xy - self._x * self._y) / spread
            base = (self._y - slope * self._x) / self._weight
            if slope > 0 and base >= 0:
                return base, slope
        return 0.0, self._xy / self._xx

    def tokens(self) -> int:
        """Tokens of a step that should take the target."""
        base, slope = self.line
        if slope <= 0:
            return self._most
        # A hair more, because 20 tokens may come out as 19.999.
        tokens = int((self._target - base) / slope + 1e-6)
        return min(max(tokens, self._least), self._most)

    def nanoseconds(self, tokens: int) -> float:
        """What a step of `tokens` tokens is expected to take; 0 while nothing is known."""
        base, slope = self.line
        return base + slope * tokens
