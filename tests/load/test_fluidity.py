"""The published properties of the fluidity-index, exactly."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pliant.errors import DataError, UsageError
from pliant.load import Deadlines, fit_prefill_curve, fluidity, sustainable_gap

MS = 1_000_000
DEADLINES = Deadlines(100 * MS, 50 * MS)
FEW = settings(max_examples=40, deadline=None)
GAPS = st.lists(st.integers(0, 400 * MS), min_size=1, max_size=60)


def test_tokens_in_time_are_fluid() -> None:
    found = fluidity([100 * MS] + [50 * MS] * 50, DEADLINES)
    assert (found.deadlines, found.missed, found.index) == (51, 0, 1)
    assert found.is_fluid


def test_without_slack_every_late_token_misses() -> None:
    found = fluidity([100 * MS] + [99 * MS] * 50, DEADLINES)
    assert (found.deadlines, found.missed) == (51, 50)
    assert not found.is_fluid


@pytest.mark.parametrize("stall", [51, 100, 149, 150, 151, 750, 1000])
@pytest.mark.parametrize("slack", [0, 20, 50])
def test_a_stall_counts_once_for_each_period(stall: int, slack: int) -> None:
    """Floor((stall - slack) / period) misses; whole periods are exact."""
    found = fluidity([(100 - slack) * MS, stall * MS], DEADLINES)
    late = stall - slack
    assert found.missed == (late // 50 if late > 50 else 0)


@pytest.mark.parametrize(
    ("gaps", "total", "missed"),
    [
        # 20 ms are left of the first deadline, 30 of the second, 20 of the third; then
        # floor((210 - 20) / 50) = 3 periods pass, and the fourth token begins anew.
        ([80, 40, 60, 210, 10, 90], 8, 3),
        # 1 + floor((230 - 100) / 50) = 3 for the first token, and nothing left for the second.
        ([230, 50, 51], 5, 4),
        # A stall of 1 s with 70 ms left: floor(930 / 50) = 18, which a mean of 35 ms hides.
        ([100, *[15] * 2, 1000, *[0] * 26], 47, 18),
    ],
)
def test_traces_worked_out_by_hand(gaps: list[int], total: int, missed: int) -> None:
    """By the steps of the paper, on paper."""
    found = fluidity([gap * MS for gap in gaps], DEADLINES)
    assert (found.deadlines, found.missed) == (total, missed)


def test_a_late_first_token() -> None:
    assert fluidity([101 * MS], DEADLINES).missed == 1
    assert fluidity([150 * MS], DEADLINES).missed == 2
    assert fluidity([849 * MS], DEADLINES).missed == 15


def test_a_burst_is_never_more_fluid_than_a_smooth_stream_of_the_same_mean() -> None:
    smooth = fluidity([100 * MS] + [50 * MS] * 40, DEADLINES)
    bursty = fluidity([100 * MS] + [0, 0, 0, 200 * MS] * 10, DEADLINES)
    stalled = fluidity([100 * MS] + [200 * MS, 0, 0, 0] * 10, DEADLINES)
    assert smooth.index == 1 == bursty.index > stalled.index


@FEW
@given(GAPS, st.integers(1, 200 * MS), st.integers(0, 200 * MS))
def test_longer_periods_never_make_a_text_less_fluid(gaps: list[int], less: int, more: int) -> None:
    shorter = fluidity(gaps, Deadlines(100 * MS, less))
    longer = fluidity(gaps, Deadlines(100 * MS, less + more))
    assert longer.missed <= shorter.missed


@FEW
@given(st.integers(0, 29), st.integers(0, 29), st.integers(0, 2_000 * MS))
def test_a_stall_later_in_a_faster_stream_is_never_worse(one: int, other: int, stall: int) -> None:
    def stalled_at(place: int) -> float:
        gaps = [30 * MS] * 30
        gaps[place] = stall
        return fluidity([100 * MS, *gaps], DEADLINES).index

    assert stalled_at(max(one, other)) >= stalled_at(min(one, other))


@FEW
@given(GAPS)
def test_the_index_counts_what_the_published_loop_counts(gaps: list[int]) -> None:
    """The loop as published, in integers."""
    slack = missed = total = 0
    for place, gap in enumerate(gaps):
        deadline = DEADLINES.first if place == 0 else DEADLINES.between
        if gap <= deadline + slack:
            slack, total = slack + deadline - gap, total + 1
            continue
        over = gap - slack
        if place == 0:
            late = 1 + (over - DEADLINES.first) // DEADLINES.between
        else:
            late = over // DEADLINES.between
        missed, total, slack = missed + late, total + late, 0
    found = fluidity(gaps, DEADLINES)
    assert (found.missed, found.deadlines) == (missed, total)


@FEW
@given(st.lists(st.integers(0, 400 * MS), min_size=2, max_size=60))
def test_the_sustainable_gap_is_the_edge(gaps: list[int]) -> None:
    found = sustainable_gap(gaps)
    assert fluidity(gaps, Deadlines(0, found), skip_first=True).is_fluid
    if found > 1:
        assert not fluidity(gaps, Deadlines(0, found - 1), skip_first=True).is_fluid


def test_a_curve_is_found_again_and_goes_on_beyond_its_points() -> None:
    lengths = [256, 512, 1024, 2048, 4096]
    times = [round(5e6 + 2e5 * size + 30 * size * size) for size in lengths]
    curve = fit_prefill_curve(lengths, times)
    assert curve(16384) == pytest.approx(5e6 + 2e5 * 16384 + 30 * 16384**2, rel=1e-6)


def test_a_curve_never_falls() -> None:
    curve = fit_prefill_curve([10, 100, 1000], [9_000, 5_000, 7_000])
    assert min(curve.constant, curve.linear, curve.square) >= 0


def test_what_cannot_be_judged() -> None:
    for gaps in ([], [-1], [5, -3]):
        with pytest.raises(DataError, match="gaps"):
            fluidity(gaps, DEADLINES)
    with pytest.raises(DataError, match="no time between"):
        sustainable_gap([5])
    with pytest.raises(DataError, match="fitted"):
        fit_prefill_curve([], [])
    with pytest.raises(UsageError, match="make no sense"):
        Deadlines(5, 0)
