"""`ToolCallReader`: finds the call of a tool in a text as it is written."""

from __future__ import annotations

import json
import re
from collections.abc import Collection

import msgspec

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*(?P<name>"(?:[^"\\]|\\.)*")\s*,\s*'
                   r'"(?:arguments|parameters)"\s*:\s*')  # fmt: skip


class CallDelta(msgspec.Struct, frozen=True):
    """A part of a call: its name comes first and alone, then its arguments piece by piece."""

    name: str | None
    arguments: str


class ToolCallReader:
    """Parts a text into plain text and one call `{"name": ..., "arguments": {...}}`.

    The call may stand between `<tool_call>` marks, as the families of Qwen and Hermes write it. A
    text that does not begin like a call is given on at once; one that turns out to be none is
    given at the end.
    """

    def __init__(self, names: Collection[str]) -> None:
        self._names = set(names)
        self._held = ""
        self._plain = False
        self._value = _Value()
        self.found = False

    def push(self, text: str) -> tuple[str, list[CallDelta]]:
        """Plain text and parts of the call that are certain now."""
        if self._plain:
            return text, []
        self._held += text
        if self.found:
            return "", self._arguments()
        start = self._held.lstrip()
        marked = start[: len(_OPEN)]
        body = start[len(_OPEN) :] if start.startswith(_OPEN) else start
        if start.startswith(_OPEN) or not _OPEN.startswith(marked):
            head = _HEAD.match(body)
            if head and json.loads(head["name"]) in self._names:
                self.found, self._held = True, body[head.end() :]
                return "", [CallDelta(json.loads(head["name"]), ""), *self._arguments()]
            if body.strip() and not body.lstrip().startswith("{"):
                return self._give_up(), []
        return "", []

    def finish(self) -> str:
        """The text that was held back for a call that never came."""
        return "" if self.found else self._give_up()

    def _give_up(self) -> str:
        self._plain, text = True, self._held
        self._held = ""
        return text

    def _arguments(self) -> list[CallDelta]:
        """The next part of the arguments: up to the end of their object, and no further."""
        new, self._held = self._value.push(self._held), ""
        return [CallDelta(None, new)] if new else []


class _Value:
    """Follows a JSON object or list to its end."""

    def __init__(self) -> None:
        self._depth = 0
        self._quoted = self._escaped = self._done = False

    def push(self, text: str) -> str:
        """The part of `text` that still belongs to the value."""
        if not self._depth and not self._done:
            text = text.lstrip()
        for place, character in enumerate(text):
            if self._done:
                return text[:place]
            self._read(character)
        return text

    def _read(self, character: str) -> None:
        if self._escaped:
            self._escaped = False
        elif self._quoted:
            self._escaped = character == "\\"
            self._quoted = character != '"'
        elif character == '"':
            self._quoted = True
        elif character in "{[":
            self._depth += 1
        elif character in "}]":
            self._depth -= 1
            self._done = self._depth == 0
