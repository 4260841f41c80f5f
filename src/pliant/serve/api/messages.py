"""Messages and tools of a chat: from the shapes of the API to those that templates read."""

from __future__ import annotations

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
    """The tools, and which must be called: a name, "" for any of them, None for none."""
    tools = tuple(_tool(place, item) for place, item in enumerate(fields.items("tools", MAX_TOOLS)))
    choice = fields.raw("tool_choice")
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


def _message(place: int, item: Any) -> Mapping[str, Any]:
    path = f"messages[{place}]"
    if not isinstance(item, dict):
        raise bad_request(f"{path} is no object with a role and a content.", param=path)
    role = item.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise bad_request(f"{path}.role is {role!r}; it must be one of {', '.join(ROLES)}.",
                          param=f"{path}.role")  # fmt: skip
    message: dict[str, Any] = {"role": ROLES[role], "content": _content(path, item)}
    for name in ("name", "tool_calls", "tool_call_id", "reasoning_content"):
        if item.get(name) is not None:
            message[name] = item[name]
    return message


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
    calls = []
    for tool in tools:
        function = tool["function"]
        if forced in ("", function["name"]):
            parameters = function.get("parameters") or {"type": "object"}
            calls.append(
                {
                    "type": "object",
                    "properties": {"name": {"const": function["name"]}, "arguments": parameters},
                    "required": ["name", "arguments"],
                    "additionalProperties": False,
                }
            )
    return calls[0] if len(calls) == 1 else {"anyOf": calls}
