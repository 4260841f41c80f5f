"""`RequestRecord`: what one request felt; `LoadReport`: what all of them did together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import msgspec

from pliant.load.fluidity import Deadlines, Fluidity, PrefillCurve, fluidity, sustainable_gap

#: A run is in capacity where 99 of 100 requests miss at most one deadline in ten.
FEASIBLE_PERCENT, FEASIBLE_MISSES = 99, 0.1


class RequestRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One request, in nanoseconds of one clock.

    `arrived` is when it was due, whether the generator was in time or not, so that a stalled
    server cannot hide requests that would have come meanwhile (coordinated omission). `times` has
    an entry for each token, when its piece of text came. `error` is why there are none. `late` is
    how long after it was due it was sent. `counted` says whether the server counted the tokens;
    where it did not, each piece of text is one.
    """

    arrived: int
    times: tuple[int, ...] = ()
    prompt_tokens: int = 0
    words: int = 0
    error: str | None = None
    late: int = 0
    counted: bool = True

    @property
    def size(self) -> int:
        """Tokens of the prompt, or its words where the server did not count."""
        return self.prompt_tokens or self.words

    @property
    def gaps(self) -> list[int]:
        """From arrival to the first token, then from each to the next."""
        before = (self.arrived, *self.times)
        return [later - earlier for earlier, later in zip(before, self.times, strict=False)]


class Percentiles(msgspec.Struct, frozen=True):
    """A sample of seconds."""

    n: int
    mean: float
    p50: float
    p90: float
    p99: float
    highest: float


class LoadReport(msgspec.Struct, frozen=True, kw_only=True):
    """The metrics of one run; seconds unless named otherwise.

    `first_token` (TTFT), `between_tokens` (TBT, all gaps pooled), `per_token` (TPOT, of each text
    the mean), `normalized` (time of the whole request by token). `fluidity` are the indices of
    requests, `fluid_share` those that missed at most one deadline in ten, and `token_rates` what
    the published program calls throughput: 1 / mean TPOT, 1 / p99 TBT, 1 / p99 of the shortest
    sustainable gaps. Requests that failed count as having missed all, and those that were
    `unfinished` when the run was stopped do not count. `uncounted` were answered by a server that
    did not say how many tokens they have.
    """

    requests: int
    failed: int
    errors: dict[str, int]
    duration: float
    requests_per_second: float
    tokens_per_second: float
    prompt_tokens: int
    tokens: int
    first_token: Percentiles | None
    between_tokens: Percentiles | None
    per_token: Percentiles | None
    normalized: Percentiles | None
    fluidity: tuple[float, ...]
    fluid_share: float
    missed_p99: float
    token_rates: tuple[float, float, float] | None
    most_late_start: float = 0.0
    uncounted: int = 0
    unfinished: int = 0

    @property
    def fluid_token_rate(self) -> float:
        """Tokens a second if 99 of 100 requests were fluid, else 0.

        The fluid token generation rate of a server is the largest over all rates of requests.
        """
        return self.tokens_per_second if self.fluid_share >= FEASIBLE_PERCENT / 100 else 0.0

    @property
    def is_feasible(self) -> bool:
        """Whether the 99th percentile of missed deadlines is at most one in ten."""
        return self.missed_p99 <= FEASIBLE_MISSES


def token_times(pieces: Sequence[tuple[int, int]], tokens: int) -> tuple[int, ...]:
    """A time for each of `tokens` tokens, given `(time, characters)` of each piece of text.

    Servers may send several tokens in a piece, or none for a token whose text is undecided, so
    tokens are counted by the server's usage and shared out by characters, the last piece ending
    with the last token. Without pieces there are no times.
    """
    if not pieces or tokens < 1:
        return ()
    if len(pieces) == tokens:
        return tuple(time for time, _ in pieces)
    total = sum(max(characters, 1) for _, characters in pieces)
    times: list[int] = []
    seen = 0
    for time, characters in pieces:
        seen += max(characters, 1)
        # As many as the share of the text so far; the first piece has one at least.
        until = max(seen * tokens // total, 1)
        times += [time] * (until - len(times))
    return tuple(times[:tokens])


def summarize(
    records: Sequence[RequestRecord],
    deadlines: Deadlines,
    curve: PrefillCurve | None = None,
    most_late_start: int = 0,
    unfinished: int = 0,
) -> LoadReport:
    """The report of a run. With a `curve` the deadline of a first token is the curve's time for
    its prompt and `deadlines.first` more. A request is late if its record or the caller says so.
    """
    answered = [record for record in records if record.times]
    failed = [record for record in records if not record.times]
    ends = [record.times[-1] for record in answered]
    start = min((record.arrived for record in records), default=0)
    duration = (max(ends, default=start) - start) / 1e9
    tokens = sum(len(record.times) for record in answered)
    gaps = [record.gaps for record in answered]
    indices = [judge(record, deadlines, curve).index for record in answered]
    indices += [0.0] * len(failed)
    between = [gap for of_one in gaps for gap in of_one[1:]]
    per_token = [sum(of_one[1:]) / (len(of_one) - 1) for of_one in gaps if len(of_one) > 1]
    return LoadReport(
        requests=len(records),
        failed=len(failed),
        errors=dict(Counter(record.error or "an answer without text" for record in failed)),
        duration=duration,
        requests_per_second=len(answered) / duration if duration else 0.0,
        tokens_per_second=tokens / duration if duration else 0.0,
        prompt_tokens=sum(record.prompt_tokens for record in answered),
        tokens=tokens,
        first_token=_percentiles([of_one[0] for of_one in gaps]),
        between_tokens=_percentiles(between),
        per_token=_percentiles(per_token),
        normalized=_percentiles([sum(of_one) / len(of_one) for of_one in gaps]),
        fluidity=tuple(indices),
        fluid_share=sum(1 - index <= FEASIBLE_MISSES + 1e-12 for index in indices)
        / max(len(indices), 1),
        missed_p99=percentile([1 - index for index in indices], FEASIBLE_PERCENT),
        token_rates=_rates(gaps, between, per_token),
        most_late_start=max([most_late_start, *(record.late for record in records)]) / 1e9,
        uncounted=sum(not record.counted for record in answered),
        unfinished=unfinished,
    )


def percentile(sample: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` of the sample do not exceed; 0 of nothing."""
    if not sample:
        return 0.0
    place = -(-len(sample) * percent // 100)
    return sorted(sample)[max(int(place), 1) - 1]


def judge(record: RequestRecord, deadlines: Deadlines, curve: PrefillCurve | None) -> Fluidity:
    """The deadlines that one answered request met."""
    if curve is not None:
        deadlines = Deadlines(curve(record.size) + deadlines.first, deadlines.between)
    return fluidity(record.gaps, deadlines)


def _rates(
    gaps: Sequence[Sequence[int]], between: Sequence[int], per_token: Sequence[float]
) -> tuple[float, float, float] | None:
    sustainable = [sustainable_gap(of_one) for of_one in gaps if len(of_one) > 1]
    if not sustainable:
        return None
    mean = sum(per_token) / len(per_token)
    found = (mean, percentile(between, 99), percentile(sustainable, 99))
    return tuple(1e9 / max(value, 1) for value in found)  # type: ignore[return-value]


def _percentiles(nanoseconds: Sequence[float]) -> Percentiles | None:
    if not nanoseconds:
        return None
    p50, p90, p99 = (percentile(nanoseconds, percent) / 1e9 for percent in (50, 90, 99))
    mean = sum(nanoseconds) / len(nanoseconds) / 1e9
    return Percentiles(len(nanoseconds), mean, p50, p90, p99, max(nanoseconds) / 1e9)
