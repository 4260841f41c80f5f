"""When requests arrive and how large they are: drawn with a seed, or read from a trace."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import msgspec

from pliant.errors import DataError, UsageError

Arrivals = Literal["poisson", "constant"]


class Arrival(msgspec.Struct, frozen=True):
    """A request to make: `at` nanoseconds from the start, words of its prompt, most tokens."""

    at: int
    words: int
    max_tokens: int


class _TraceLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    at: float
    words: int
    max_tokens: int


def draw_arrivals(
    kind: Arrivals, rate: float, count: int, words: int, max_tokens: int, seed: int
) -> list[Arrival]:
    """`count` requests at `rate` a second: evenly, or with exponential gaps (a Poisson process).

    `UsageError` for a rate, count or size that is not positive.
    """
    if not 0 < rate < math.inf or min(count, words, max_tokens) < 1:
        raise UsageError(
            f"{count} requests of {words} words and {max_tokens} tokens at {rate:g} a second make "
            "no load; give positive numbers."
        )
    drawn, at, arrivals = random.Random(seed), 0.0, []
    for _ in range(count):
        arrivals.append(Arrival(round(at * 1e9), words, max_tokens))
        at += drawn.expovariate(rate) if kind == "poisson" else 1 / rate
    return arrivals


def read_arrivals(path: Path) -> list[Arrival]:
    """The requests of a file with a JSON object a line: `at` in seconds, `words`, `max_tokens`.

    `DataError` where it cannot be read, holds nothing, or a line is something else.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise DataError(f"The trace {path} cannot be read: {error.strerror}.") from error
    arrivals = list(_parsed(path, lines))
    if not arrivals:
        raise DataError(f"The trace {path} holds no request; write one a line.")
    return sorted(arrivals, key=lambda arrival: arrival.at)


def _parsed(path: Path, lines: Iterable[bytes]) -> Iterable[Arrival]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            found = msgspec.json.decode(line, type=_TraceLine)
        except (ValueError, RecursionError) as error:
            raise DataError(f"Line {number} of {path} is no request: {error}.") from error
        if found.at < 0 or min(found.words, found.max_tokens) < 1:
            raise DataError(f"Line {number} of {path} has a number that is too small.")
        yield Arrival(round(found.at * 1e9), found.words, found.max_tokens)
