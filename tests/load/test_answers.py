"""Answers of servers of all kinds: what they count, leave out, call otherwise, or refuse."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pliant.load import Arrival, RequestRecord
from pliant.load.answers import read_record
from pliant.load.wire import Reply


def read(*events: Any, status: int = 200, prefix: str = "data: ") -> RequestRecord:
    """The record of a stream whose event number i came at 10 i."""
    texts = [event if isinstance(event, str) else json.dumps(event) for event in events]
    pieces = tuple((10 * place, f"{prefix}{text}\n\n".encode()) for place, text in enumerate(texts))
    return read_record(Reply(status, pieces), Arrival(0, 7, 9), due=0)


def delta(**fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": fields}]}


def call(**function: Any) -> dict[str, Any]:
    return delta(tool_calls=[{"index": 0, "function": function}])


def test_a_server_that_does_not_count() -> None:
    found = read(
        delta(role="assistant", content=""), delta(content="a"), delta(content="bc"), "[DONE]"
    )
    assert (found.times, found.counted, found.prompt_tokens) == ((10, 20), False, 0)
    assert found.size == 7


def test_usage_goes_before_pieces() -> None:
    usage = {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 4}}
    found = read(delta(content="aa"), delta(content="aa"), usage, "[DONE]")
    assert (found.times, found.counted, found.size) == ((0, 0, 10, 10), True, 5)


@pytest.mark.parametrize("name", ["content", "reasoning_content", "reasoning"])
def test_thoughts_take_time_too(name: str) -> None:
    found = read(delta(role="assistant"), delta(**{name: "so"}), delta(content="a"), "[DONE]")
    assert found.times == (10, 20)


def test_calls_of_tools_take_time_too() -> None:
    found = read(call(name="f", arguments=""), call(arguments="{"), call(arguments="}"), "[DONE]")
    assert found.times == (0, 10, 20)


def test_events_without_a_space() -> None:
    assert read(delta(content="a"), "[DONE]", prefix="data:").times == (0,)


def test_nothing_behind_the_end_counts() -> None:
    assert read(delta(content="a"), "[DONE]", delta(content="b")).times == (0,)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"error": {"message": "Too many."}}', ": Too many."),
        (b'{"error": "Too many."}', ": Too many."),
        (b'{"detail": "Too many."}', ": Too many."),
        (b'{"object": "error", "message": "Too many."}', ": Too many."),
        (b"Too many.\n<html>", ": Too many."),
        (b"[1]", ": [1]"),
        (b"\xff", ": \ufffd"),
        (b"", ""),
    ],
)
def test_refusals_in_the_words_of_the_server(body: bytes, said: str) -> None:
    found = read_record(Reply(429, ((1, body),)), Arrival(0, 7, 9), due=0)
    assert (found.error, found.times) == (f"status 429{said}", ())


def test_failures_within_a_stream() -> None:
    assert read(delta(content="a"), {"error": {"message": "Gone."}}).error == "Gone."
    # Some servers have the field always.
    assert read({**delta(content="a"), "error": None}, "[DONE]").error is None


def test_an_answer_that_is_whole_is_no_stream() -> None:
    body = json.dumps({"choices": [{"text": "a"}]}).encode()
    found = read_record(Reply(200, ((1, body),)), Arrival(0, 7, 9), due=0)
    assert found.error == "the answer is no stream of events"
