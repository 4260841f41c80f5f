"""Messages and tools of a chat: from the shapes of the API to those that templates read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pliant.serve.api.errors import bad_request
from pliant.serve.api.fields import Fields

MAX_MESSAGES = 2_000
MAX_TOOLS = 64
#: Roles of the API and what templates call them.
ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}


def read_messages(fields: Fields) -> tuple[Mapping[str, Any], ...]:
    """The conversation, contents as plain text; 400 for parts that are no text."""
    given = fields.items("messages", MAX_MESSAGES)
    if not given:
        raise bad_request("messages is missing or empty; send at least one.", param="messages")
    return tuple(_message(place, item) for place, item in enumerate(given))


def read_tools(fields: Fields) -> tuple[tuple[Mapping[str, Any], ...], str | None]:
    """The tools, and which must be called: a name, "" for any of them, None for none.

    With `tool_choice` of type `allowed_tools` only those that it names are left.
    """
    tools = tuple(_tool(place, item) for place, item in enumerate(fields.items("tools", MAX_TOOLS)))
    choice = fields.raw("tool_choice")
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        tools, choice = _allowed(fields, tools, choice.get("allowed_tools"))
    if choice in (None, "auto"):
        return tools, None
    if choice == "none":
        return (), None
    names = [tool["function"]["name"] for tool in tools]
    if choice == "required" and names:
        return tools, ""
    named = choice.get("function") if isinstance(choice, dict) else None
    name = named.get("name") if isinstance(named, dict) else None
    if name not in names:
        raise fields.wrong("tool_choice", f"auto, none, required or one of the tools {names}")
    return tools, str(name)


def _allowed(
    fields: Fields, tools: tuple[Mapping[str, Any], ...], allowed: Any
) -> tuple[tuple[Mapping[str, Any], ...], str]:
    """The tools that a choice of `allowed_tools` leaves, and its mode: `auto` or `required`."""
    known = {tool["function"]["name"]: tool for tool in tools}
    mode = allowed.get("mode") if isinstance(allowed, dict) else None
    listed = allowed.get("tools") if isinstance(allowed, dict) else None
    named = [_named(one) for one in listed] if isinstance(listed, list) else []
    if mode not in ("auto", "required") or not named or any(one not in known for one in named):
        raise fields.wrong("tool_choice", "allowed_tools with a mode of auto or required and a "
                           f"list of some of the tools {list(known)}")  # fmt: skip
    return tuple(known[name] for name in dict.fromkeys(map(str, named))), str(mode)


def _named(tool: Any) -> str | None:
    function = tool.get("function") if isinstance(tool, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else None


def _message(place: int, item: Any) -> Mapping[str, Any]:
    path = f"messages[{place}]"
    if not isinstance(item, dict):
        raise bad_request(f"{path} is no object with a role and a content.", param=path)
    role = item.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise bad_request(f"{path}.role is {role!r}; it must be one of {', '.join(ROLES)}.",
                          param=f"{path}.role")  # fmt: skip
    message: dict[str, Any] = {"role": ROLES[role], "content": _content(path, item)}
    for name in ("name", "tool_call_id", "reasoning_content"):
        if item.get(name) is not None:
            if not isinstance(item[name], str):
                raise bad_request(f"{path}.{name} must be a text.", param=f"{path}.{name}")
            message[name] = item[name]
    if item.get("tool_calls") is not None:
        message["tool_calls"] = _calls(f"{path}.tool_calls", item["tool_calls"])
    return message


def _calls(path: str, given: Any) -> list[dict[str, Any]]:
    """Calls of an earlier answer, their arguments as the objects that templates write as JSON."""
    calls = []
    for call in given if isinstance(given, list) else [{}]:
        function = call.get("function") if isinstance(call, dict) else None
        function = function if isinstance(function, dict) else {}
        arguments = function.get("arguments")
        if _named(call) is None or not isinstance(arguments, str | dict | None):
            raise bad_request(f"{path} must be a list of calls with a function of a name and "
                              "arguments.", param=path)  # fmt: skip
        calls.append({**call, "function": {**function, "arguments": _arguments(arguments)}})
    return calls


def _arguments(given: Any) -> Any:
    """The API has arguments as text; one that is no JSON was cut off and stays as it is."""
    if not isinstance(given, str) or not given:
        return given or {}
    try:
        return json.loads(given)
    except (ValueError, RecursionError):
        return given


def _content(path: str, item: Mapping[str, Any]) -> str:
    content = item.get("content")
    if content is None and item.get("tool_calls"):
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise bad_request(f"{path}.content must be a text or a list of parts.",
                          param=f"{path}.content")  # fmt: skip
    texts = []
    for part in content:
        text = part.get("text") if isinstance(part, dict) else None
        if not isinstance(text, str) or part.get("type", "text") != "text":
            raise bad_request(f"{path}.content has a part that is no text; this model reads text.",
                              param=f"{path}.content")  # fmt: skip
        texts.append(text)
    return "".join(texts)


def _tool(place: int, item: Any) -> Mapping[str, Any]:
    path = f"tools[{place}]"
    function = item.get("function") if isinstance(item, dict) else None
    if not isinstance(function, dict) or item.get("type", "function") != "function":
        raise bad_request(f"{path} is no tool of type function.", param=path)
    name = function.get("name")
    if not isinstance(name, str) or not 0 < len(name) <= 64:
        raise bad_request(f"{path}.function.name must be a text of 1 to 64 characters.", param=path)
    if not isinstance(function.get("parameters", {}), dict):
        raise bad_request(f"{path}.function.parameters must be a JSON schema.", param=path)
    return {"type": "function", "function": function}


def tool_schema(tools: tuple[Mapping[str, Any], ...], forced: str) -> Mapping[str, Any]:
    """The JSON schema of a call of the tool `forced`, or of any where it is ""."""
    calls: list[dict[str, Any]] = []
    parameters: dict[str, Any] = {}
    for place, tool in enumerate(tools):
        function = tool["function"]
        if forced in ("", function["name"]):
            root = f"#/$defs/{place}"
            whole = function.get("parameters") or {"type": "object"}
            parameters[str(place)] = _moved(whole, root)
            calls.append(
                {
                    "type": "object",
                    "properties": {
                        "name": {"const": function["name"]},
                        "arguments": {"$ref": root},
                    },
                    "required": ["name", "arguments"],
                    "additionalProperties": False,
                }
            )
    return {**(calls[0] if len(calls) == 1 else {"anyOf": calls}), "$defs": parameters}


def _moved(schema: Any, root: str) -> Any:
    """A schema whose references to its own parts are right where it lies at `root`."""
    if isinstance(schema, list):
        return [_moved(one, root) for one in schema]
    if not isinstance(schema, dict):
        return schema
    moved = {name: _moved(value, root) for name, value in schema.items()}
    target = schema.get("$ref")
    if isinstance(target, str) and target.startswith("#"):
        moved["$ref"] = root + target[1:]
    if isinstance(schema.get("$id"), str):
        # With a name of its own it would be a document of its own, and its parts not ours.
        del moved["$id"]
    return moved
