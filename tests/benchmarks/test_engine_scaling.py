"""What counts as slower than it should be."""

from __future__ import annotations

from typing import Any

import pytest


def timed(seconds: float, **labels: object) -> dict[str, Any]:
    return {"seconds": {"low": seconds, "median": 1.1 * seconds}, "of_bound": 0.9, **labels}


@pytest.fixture
def answers() -> dict[str, list[dict[str, Any]]]:
    """Times as they should be."""
    return {
        "batch": [timed(1.0 + 0.1 * count, sequences=count) for count in (1, 2, 4)],
        "tokens": [timed(1.0 + 0.1 * count, count=count) for count in (1, 2, 3, 4)],
        "cuts": [
            timed(kept, axis=axis, kept=kept)
            for axis, kepts in (("depth", (1.0, 0.5)), ("planes", (8.0, 7.0)))
            for kept in kepts
        ],
        "context": [timed(1.0, context=1, bytes=100), timed(1.5, context=512, bytes=150)],
    }


def test_times_as_they_should_be_are_no_finding(answers: dict[str, Any]) -> None:
    import engine_scaling_report as report

    assert report.findings(answers) == []


@pytest.mark.parametrize(
    ("question", "place", "seconds", "says"),
    [
        ("tokens", 1, 2.4, "2 tokens at once take 2.18 times one token"),
        ("tokens", 3, 1.1, "4 tokens take 0.85 of the time of 3: a cliff"),
        ("cuts", 1, 1.0, "depth 0.5 is not faster than 1: 1.00 of its time"),
        ("cuts", 3, 8.5, "planes 7 is not faster than 8"),
        ("batch", 2, 2.88, "a token costs more in a batch of 4 than of 2: 1.20"),
        ("context", 1, 1.8, "takes 1.80 of the time and reads 1.50 of the bytes"),
    ],
)
def test_findings(
    answers: dict[str, Any], question: str, place: int, seconds: float, says: str
) -> None:
    import engine_scaling_report as report

    answers[question][place]["seconds"]["low"] = seconds
    found = report.findings(answers)
    assert len(found) >= 1
    assert any(says in finding for finding in found), found


def test_the_table_shows_powers_of_two_of_tokens(answers: dict[str, Any]) -> None:
    import engine_scaling_report as report

    names = [row[0] for row in report.table(answers, "")["rows"]]
    assert "4 tokens of a prompt" in names
    assert "3 tokens of a prompt" not in names
    assert "1 token, depth 50%" in names
    assert "1 token, 7 planes" in names


def test_steps_take_turns_and_short_ones_are_repeated() -> None:
    import engine_scaling

    calls: list[str] = []
    found = engine_scaling.in_turn([lambda: calls.append("a"), lambda: calls.append("b")], 3, 0.0)
    # Two calls of each warm up and find the number of calls in a sample.
    assert "".join(calls) == "aabb" + "ab" + "ba" + "ab"
    assert [len(samples) for samples in found] == [3, 3]


def test_the_roofline_is_the_larger_of_reading_and_computing() -> None:
    import engine_scaling

    bound = engine_scaling.Bound(bytes_per_second=100.0, tokens_per_second=10.0)
    assert bound.seconds(200, 1) == 2.0
    assert bound.seconds(200, 50) == 5.0
