"""Calls of tools are found however their text is divided."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pliant.runtime import Tokenizer
from pliant.serve.api.choices import Choice
from pliant.serve.api.requests import read_chat
from pliant.serve.api.tool_calls import ToolCallReader
from pliant.serve.writer import Emission

ARGUMENTS = '{"city": "Par\\"}is{", "list": [1, {"a": 2}]}'
CALLS = [
    '{"name":"weather","arguments":' + ARGUMENTS + "}",
    '<tool_call>\n{"name": "weather", "arguments": ' + ARGUMENTS + "}\n</tool_call>",
]
TEXTS = [
    "The weather is fine.",
    "{not a call}",
    "<b>bold</b>",
    '{"name": "other", "arguments": {}}',
]


def read(text: str, cuts: list[int]) -> tuple[str, str | None, str]:
    """Plain text, name and arguments of `text` divided at `cuts`."""
    reader = ToolCallReader(["weather"])
    places = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    plain, name, arguments = "", None, ""
    for begin, end in pairwise(places):
        shown, deltas = reader.push(text[begin:end])
        plain += shown
        for delta in deltas:
            name = delta.name or name
            arguments += delta.arguments
    return plain + reader.finish(), name, arguments


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(CALLS), st.lists(st.integers(0, 500), max_size=20))
def test_a_call_is_found(text: str, cuts: list[int]) -> None:
    assert read(text, cuts) == ("", "weather", ARGUMENTS)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(TEXTS), st.lists(st.integers(0, 500), max_size=20))
def test_other_texts_come_through_whole(text: str, cuts: list[int]) -> None:
    assert read(text, cuts) == (text, None, "")


def calls_in(text: str, cuts: list[int], many: bool = True) -> list[tuple[str, str]]:
    """Names and arguments of all calls of `text` divided at `cuts`."""
    reader = ToolCallReader(["weather", "trains"], many=many)
    places = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    found: list[tuple[str, str]] = []
    for begin, end in pairwise(places):
        shown, deltas = reader.push(text[begin:end])
        assert not shown
        for delta in deltas:
            if delta.name is not None:
                found.append((delta.name, ""))
            assert delta.index == len(found) - 1
            found[-1] = (found[-1][0], found[-1][1] + delta.arguments)
    assert not reader.finish()
    return found


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["weather", "trains"]), st.integers(0, 1)), min_size=1,
             max_size=3),
    st.sampled_from(["", "\n", ", ", "; "]),
    st.sampled_from(["", "\n", " That is all.", "<tool_call>{", "}}"]),
    st.lists(st.integers(0, 900), max_size=20),
)  # fmt: skip
def test_calls_that_follow_each_other(
    asked: list[tuple[str, int]], between: str, after: str, cuts: list[int]
) -> None:
    text = between.join(CALLS[kind].replace("weather", name) for name, kind in asked) + after
    expected = [(name, ARGUMENTS) for name, _ in asked]
    assert calls_in(text, cuts) == expected
    assert calls_in(text, cuts, many=False) == expected[:1]


def test_a_text_that_is_no_call_is_not_held_back() -> None:
    assert ToolCallReader(["weather"]).push("The") == ("The", [])


@pytest.mark.parametrize("text", ["", "{", "<tool", CALLS[0][:20]])
def test_an_unfinished_beginning_is_text(text: str) -> None:
    assert read(text, []) == (text, None, "")


def test_an_answer_with_two_calls(bytes_tokenizer: Tokenizer) -> None:
    """Their indices in a stream, and the whole answer made of the same parts."""
    tools = [{"type": "function", "function": {"name": name}} for name in ("weather", "trains")]
    body = {"messages": [{"role": "user", "content": "a"}], "tools": tools}
    pieces = [CALLS[1], CALLS[1].replace("weather", "trains")]
    for parallel, count in ((True, 2), (False, 1)):
        asked = read_chat(json.dumps({**body, "parallel_tool_calls": parallel}).encode())
        assert asked.unknown == ()
        choice = Choice(asked, bytes_tokenizer, 0, [1])
        chunks = choice.push(Emission(token=1, text=pieces[0]))
        chunks += choice.push(Emission(token=1, text=pieces[1], finish_reason="stop"))
        whole = choice.whole()
        calls = whole["message"]["tool_calls"]
        assert [call["function"]["arguments"] for call in calls] == [ARGUMENTS] * count
        assert len({call["id"] for call in calls}) == count
        assert whole["finish_reason"] == chunks[-1]["finish_reason"] == "tool_calls"
        deltas = [part for chunk in chunks for part in chunk["delta"].get("tool_calls", [])]
        assert [part["index"] for part in deltas if "id" in part] == list(range(count))
        assert [part["id"] for part in deltas if "id" in part] == [call["id"] for call in calls]
        for index in range(count):
            streamed = [part for part in deltas if part["index"] == index]
            assert "".join(part["function"]["arguments"] for part in streamed) == ARGUMENTS
