"""Calls of tools are found however their text is divided."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pliant.serve.api.tool_calls import ToolCallReader

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


def test_a_text_that_is_no_call_is_not_held_back() -> None:
    assert ToolCallReader(["weather"]).push("The") == ("The", [])


@pytest.mark.parametrize("text", ["", "{", "<tool", CALLS[0][:20]])
def test_an_unfinished_beginning_is_text(text: str) -> None:
    assert read(text, []) == (text, None, "")
