"""Messages and tools as clients send them, and as templates read them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pliant.serve.api.errors import ApiError
from pliant.serve.api.messages import tool_schema
from pliant.serve.api.requests import read_chat, read_completion

SAID = {"role": "user", "content": "a"}
TOOLS = [{"type": "function", "function": {"name": name}} for name in ("weather", "trains")]


def read(**body: Any) -> Any:
    return read_chat(json.dumps({"messages": [SAID], **body}).encode())


def called(arguments: Any) -> list[dict[str, Any]]:
    function = {"name": "weather", "arguments": arguments}
    return [{"id": "call_1", "type": "function", "function": function}]


@pytest.mark.parametrize(
    ("sent", "read_as"),
    [
        ('{"city": "Rome", "days": [1]}', {"city": "Rome", "days": [1]}),
        ("", {}),
        (None, {}),
        ({"city": "Rome"}, {"city": "Rome"}),
        # An answer that was cut off by its limit comes back like this.
        ('{"city": "Ro', '{"city": "Ro'),
    ],
)
def test_arguments_of_earlier_calls_are_objects_for_templates(sent: Any, read_as: Any) -> None:
    """Templates write them as JSON; of a text that would be JSON within JSON."""
    answer = {"role": "assistant", "content": None, "tool_calls": called(sent)}
    result = {"role": "tool", "tool_call_id": "call_1", "content": "42"}
    messages = read(messages=[SAID, answer, result]).messages
    assert messages[1]["content"] == ""
    assert messages[1]["tool_calls"][0]["function"]["arguments"] == read_as
    assert messages[2]["tool_call_id"] == "call_1"


@pytest.mark.parametrize(
    "calls", [3, "x", [3], [{}], [{"function": {}}], [{"function": {"name": 1}}], called(7)]
)
def test_calls_that_are_none(calls: Any) -> None:
    with pytest.raises(ApiError) as error:
        read(messages=[{"role": "assistant", "content": "a", "tool_calls": calls}])
    assert (error.value.status, error.value.param) == (400, "messages[0].tool_calls")


def test_names_are_texts() -> None:
    with pytest.raises(ApiError, match=r"messages\[0\].name"):
        read(messages=[{**SAID, "name": 3}])


def test_allowed_tools() -> None:
    listed = [TOOLS[1]]

    def choose(**allowed: Any) -> Any:
        choice = {"type": "allowed_tools", "allowed_tools": allowed}
        return read(tools=TOOLS, tool_choice=choice)

    free, forced = (choose(mode=mode, tools=listed) for mode in ("auto", "required"))
    for asked, tool in ((free, None), (forced, "")):
        assert [one["function"]["name"] for one in asked.tools] == ["trains"]
        assert asked.forced_tool == tool
    for wrong in ({}, {"mode": "none", "tools": listed}, {"mode": "auto", "tools": []},
                  {"mode": "auto", "tools": [{"type": "function", "function": {"name": "x"}}]},
                  {"mode": "auto", "tools": 3}):  # fmt: skip
        with pytest.raises(ApiError, match="allowed_tools"):
            choose(**wrong)


def test_what_is_ignored_is_named_wherever_it_stands() -> None:
    """But null is nothing, and what changes nothing needs no warning."""
    schema = {"name": "x", "strict": True, "schema": {"type": "object"}, "colour": 1}
    asked = read(
        stream=True,
        stream_options={"include_usage": True, "include_obfuscation": False, "more": 1},
        response_format={"type": "json_schema", "json_schema": schema},
        reasoning_effort=None,
        colour="red",
        user="me",
    )
    assert asked.unknown == ("colour", "response_format.json_schema.colour", "stream_options.more")


def test_an_empty_list_of_stops_and_null_everywhere() -> None:
    names = ("max_tokens", "temperature", "top_p", "n", "stream", "stop", "seed", "logit_bias",
             "logprobs", "echo", "suffix", "best_of", "stream_options", "user")  # fmt: skip
    asked = read_completion(json.dumps({"prompt": "a", **dict.fromkeys(names)}).encode())
    assert (asked.max_tokens, asked.num_choices, asked.unknown) == (16, 1, ())


def test_parameters_that_refer_to_themselves() -> None:
    """They lie within another schema, where `#` is another place; a property may be named so."""
    leaf = {"type": "object", "properties": {"$ref": {"type": "string"}, "next": {"$ref": "#"}}}
    parameters = {"$id": "https://x/y", "$defs": {"leaf": {"enum": [1]}}, **leaf}
    parameters["properties"] = {**leaf["properties"], "one": {"$ref": "#/$defs/leaf"}}
    function = {"name": "walk", "parameters": parameters}
    found = tool_schema(({"function": {"name": "x"}}, {"function": function}), "")
    moved = found["$defs"]["1"]
    assert moved["properties"]["one"] == {"$ref": "#/$defs/1/$defs/leaf"}
    assert moved["properties"]["next"] == {"$ref": "#/$defs/1"}
    assert moved["properties"]["$ref"] == {"type": "string"} and "$id" not in moved
    assert [call["properties"]["arguments"]["$ref"] for call in found["anyOf"]] == [
        "#/$defs/0", "#/$defs/1",
    ]  # fmt: skip
