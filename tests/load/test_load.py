"""Arrivals, counting, reports and the search for capacity, all without a server."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pliant.errors import DataError, UsageError
from pliant.load import (
    Deadlines,
    Endpoint,
    PrefillCurve,
    RequestRecord,
    draw_arrivals,
    find_capacity,
    read_arrivals,
    summarize,
    token_times,
)
from pliant.load.page import render_page
from pliant.load.record import percentile

MS = 1_000_000


def record(first: int, gaps: list[int], arrived: int = 0) -> RequestRecord:
    times = [arrived + first * MS]
    for gap in gaps:
        times.append(times[-1] + gap * MS)
    return RequestRecord(arrived=arrived, times=tuple(times), prompt_tokens=10)


def test_arrivals_have_their_rate_and_their_seed() -> None:
    constant = draw_arrivals("constant", 4, 5, 10, 20, 0)
    assert [arrival.at for arrival in constant] == [0, 250 * MS, 500 * MS, 750 * MS, 1000 * MS]
    drawn = draw_arrivals("poisson", 4, 4_000, 10, 20, 7)
    assert drawn == draw_arrivals("poisson", 4, 4_000, 10, 20, 7)
    # The mean of 4000 exponential gaps is within five standard errors of 1/4 s.
    assert drawn[-1].at / 1e9 == pytest.approx(1000, rel=5 / 4_000**0.5)
    with pytest.raises(UsageError, match="no load"):
        draw_arrivals("constant", 0, 1, 1, 1, 0)


def test_a_trace(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    line = '{"at": %s, "words": 3, "max_tokens": 4}\n'
    path.write_text(line % 1.5 + "\n" + line % 0.5)
    assert [arrival.at for arrival in read_arrivals(path)] == [500 * MS, 1500 * MS]
    for text in ("", "{}", line % -1, '{"at": 0, "words": 0, "max_tokens": 1}', "nonsense"):
        path.write_text(text)
        with pytest.raises(DataError, match="trace"):
            read_arrivals(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_arrivals(tmp_path / "none")


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 30)), min_size=1, max_size=20),
    st.integers(1, 60),
)
def test_tokens_are_counted_by_usage(pieces: list[tuple[int, int]], tokens: int) -> None:
    pieces = sorted(pieces)
    times = token_times(pieces, tokens)
    assert len(times) == tokens
    assert list(times) == sorted(times)
    assert set(times) <= {time for time, _ in pieces}
    if tokens > 1:
        assert times[-1] == pieces[-1][0]
    assert times[0] == pieces[0][0]


def test_a_report_of_known_times() -> None:
    records = [record(80, [40] * 10), record(80, [40, 400, 0, 0]), RequestRecord(arrived=5)]
    report = summarize(records, Deadlines(100 * MS, 50 * MS))
    assert (report.requests, report.failed, report.tokens) == (3, 1, 16)
    assert report.errors == {"an answer without text": 1}
    assert report.first_token is not None and report.first_token.p50 == pytest.approx(0.08)
    assert report.between_tokens is not None and report.between_tokens.highest == 0.4
    # 30 ms of slack before the stall: floor((400 - 30) / 50) = 7 of 11 deadlines are missed.
    assert report.fluidity == pytest.approx((1, 1 - 7 / 11, 0))
    assert report.fluid_share == pytest.approx(1 / 3)
    assert report.missed_p99 == 1 and not report.is_feasible
    assert report.duration == pytest.approx(0.52)
    assert report.token_rates is not None
    assert report.token_rates[1] == pytest.approx(2.5)


def test_deadlines_of_prompts_from_a_curve() -> None:
    slow = [record(500, [10])]
    assert summarize(slow, Deadlines(100 * MS, 50 * MS)).fluidity[0] < 1
    curve = PrefillCurve(0, 40 * MS, 0)
    assert summarize(slow, Deadlines(100 * MS, 50 * MS), curve).fluidity == (1,)


def test_the_fluid_token_rate_is_that_of_a_fluid_run() -> None:
    fluid, late = record(80, [40] * 10), record(80, [400] * 10)
    alone = summarize([fluid], Deadlines())
    assert alone.fluid_token_rate == alone.tokens_per_second > 0
    assert summarize([fluid, late], Deadlines()).fluid_token_rate == 0


def test_a_run_in_which_nothing_was_answered() -> None:
    report = summarize([RequestRecord(arrived=0, error="gone")], Deadlines())
    assert report.errors == {"gone": 1} and report.first_token is None
    assert "gone" in render_page("x", report, [RequestRecord(arrived=0)], Deadlines())


def test_percentiles_are_values_of_the_sample() -> None:
    sample = list(range(1, 101))
    assert [percentile(sample, percent) for percent in (50, 99, 100)] == [50, 99, 100]
    assert percentile([3], 99) == 3 and percentile([], 99) == 0


@settings(max_examples=40, deadline=None)
@given(st.floats(0.05, 500), st.floats(0.5, 20))
def test_the_capacity_is_found(true: float, guess: float) -> None:
    runs = []

    def is_feasible(rate: float) -> bool:
        runs.append(rate)
        return rate <= true

    found = find_capacity(is_feasible, guess)
    assert len(runs) <= 20 and found <= true
    assert found >= 0.94 * true or len(runs) == 20 or true < guess / 32


def test_a_server_that_sustains_nothing() -> None:
    assert find_capacity(lambda rate: False, 1) == 0
    with pytest.raises(UsageError, match="no sense"):
        find_capacity(lambda rate: True, 0)


def test_prompts_are_unlike_from_their_beginning_on() -> None:
    endpoint = Endpoint(url="http://x", model="m", extra={"ignore_eos": True})
    bodies = [endpoint.body(20, 5, number) for number in range(30)]
    assert len({body["prompt"].split()[0] for body in bodies}) == 30
    assert all(len(body["prompt"].split()) == 20 and body["ignore_eos"] for body in bodies)
    chat = Endpoint(url="http://x", chat=True).body(3, 5, 1)
    assert chat["messages"][0]["role"] == "user" and "model" not in chat


def test_the_page_is_whole_and_loads_nothing() -> None:
    class Tags(HTMLParser):
        found: list[str] = []  # noqa: RUF012

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.found.append(tag)
            assert not {"src", "href"} & {name for name, _ in attrs}

    records = [record(80, [40, 60, 20])]
    page = render_page("<b>", summarize(records, Deadlines()), records, Deadlines())
    Tags().feed(page)
    assert Tags.found.count("svg") == 3
    assert "http" not in page and "url(" not in page and "@import" not in page
    assert "<b>" not in page and "&lt;b&gt;" in page
