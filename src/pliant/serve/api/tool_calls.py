"""`ToolCallReader`: finds the calls of tools in a text as it is written."""

from __future__ import annotations

import json
import re
from collections.abc import Collection

import msgspec

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*(?P<name>"(?:[^"\\]|\\.)*")\s*,\s*'
                   r'"(?:arguments|parameters)"\s*:\s*')  # fmt: skip

#: What ends one call and may stand before the next.
_BETWEEN = re.compile(r"^\s*\}?\s*(?:</tool_call>)?[\s,;]*")


class CallDelta(msgspec.Struct, frozen=True):
    """A part of call `index`: its name comes first and alone, then its arguments by pieces."""

    index: int
    name: str | None
    arguments: str


class ToolCallReader:
    """Parts a text into plain text and calls `{"name": ..., "arguments": {...}}`.

    A call may stand between `<tool_call>` marks, as the families of Qwen and Hermes write it, and
    unless `many` is False others may follow it. A text that does not begin like a call is given on
    at once; one that turns out to be none is given at the end. What stands behind a call and is
    none is left out.
    """

    def __init__(self, names: Collection[str], *, many: bool = True) -> None:
        self._names = set(names)
        self._many = many
        self._held = ""
        #: Whether nothing but plain text, or nothing at all, can follow.
        self._plain = self._ended = False
        self._value: _Value | None = None
        self._count = 0

    @property
    def found(self) -> bool:
        """Whether there was a call."""
        return self._count > 0

    def push(self, text: str) -> tuple[str, list[CallDelta]]:
        """Plain text and parts of calls that are certain now."""
        if self._plain:
            return text, []
        self._held = "" if self._ended else self._held + text
        parts: list[CallDelta] = []
        while not self._ended and (self._value is not None or self._begin(parts)):
            if not self._read_arguments(parts):
                return "", parts
        return (self._give_up() if self._ended and not self.found else ""), parts

    def finish(self) -> str:
        """The text that was held back for a call that never came."""
        return "" if self.found else self._give_up()

    def _begin(self, parts: list[CallDelta]) -> bool:
        """Whether the next call begins; ends the reading where none can."""
        if self.found:
            self._held = _BETWEEN.sub("", self._held)
        start = self._held.lstrip()
        if not start.startswith(_OPEN) and _OPEN.startswith(start[: len(_OPEN)]):
            return False
        body = start.removeprefix(_OPEN)
        head = _HEAD.match(body)
        if head and json.loads(head["name"]) in self._names:
            parts.append(CallDelta(self._count, json.loads(head["name"]), ""))
            self._held, self._value = body[head.end() :], _Value()
            self._count += 1
            return True
        closing = self.found and _CLOSE.startswith(start[: len(_CLOSE)])
        self._ended = bool(body.strip()) and not body.lstrip().startswith("{") and not closing
        return False

    def _read_arguments(self, parts: list[CallDelta]) -> bool:
        """Take what is there of the arguments; whether they are whole."""
        assert self._value is not None
        new, self._held = self._value.push(self._held)
        if new:
            parts.append(CallDelta(self._count - 1, None, new))
        if not self._value.is_done:
            return False
        self._value, self._ended = None, not self._many
        return True

    def _give_up(self) -> str:
        self._plain, text = True, self._held
        self._held = ""
        return text


class _Value:
    """Follows a JSON object or list to its end."""

    def __init__(self) -> None:
        self._depth = 0
        self._quoted = self._escaped = self.is_done = False

    def push(self, text: str) -> tuple[str, str]:
        """The part of `text` that still belongs to the value, and what follows it."""
        if not self._depth and not self.is_done:
            text = text.lstrip()
        for place, character in enumerate(text):
            if self.is_done:
                return text[:place], text[place:]
            self._read(character)
        return text, ""

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
            self.is_done = self._depth == 0
