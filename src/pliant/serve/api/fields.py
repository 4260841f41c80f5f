"""`Fields`: reads the values of a JSON object, each with its rule, and knows which it read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import msgspec

from pliant.serve.api.errors import ApiError, bad_request

#: Levels of objects and lists in a body: far more than any request has.
MAX_DEPTH = 64


class Fields:
    """The fields of one object of a body. `null` counts as left out, as in the OpenAI API.

    Every method raises `ApiError` 400 that names the field, what it is and what it may be.
    """

    def __init__(self, values: Mapping[str, Any], path: str = "") -> None:
        self._values = values
        self._path = path
        self._read: set[str] = set()
        self._inner: list[Fields] = []

    @classmethod
    def parse(cls, body: bytes) -> Fields:
        """The object that a body is; 400 where it is not JSON, not an object, or too deep."""
        try:
            values = msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise bad_request(f"The body is not JSON: {error}.", code="invalid_json") from error
        if not isinstance(values, dict):
            raise bad_request(f"The body is a JSON {_kind(values)}; send an object.")
        _check_depth(values)
        return cls(values)

    def unknown(self) -> list[str]:
        """Names of fields that nothing has read, with those of the objects within; null is none."""
        own = [
            self._path + name
            for name, value in self._values.items()
            if name not in self._read and value is not None
        ]
        return sorted(chain(own, *(inner.unknown() for inner in self._inner)))

    def raw(self, name: str) -> Any:
        """The value as it came, None where there is none."""
        self._read.add(name)
        return self._values.get(name)

    def integer(self, name: str, low: int, high: int, default: int) -> int:
        """A whole number from `low` to `high`; 3.0 is one, true is none."""
        found = self.optional_integer(name, low, high)
        return default if found is None else found

    def optional_integer(self, name: str, low: int, high: int) -> int | None:
        """The same, None where it is left out."""
        value = self.raw(name)
        if value is None:
            return None
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.wrong(name, f"a whole number from {low} to {high}")
        return value

    def number(self, name: str, low: float, high: float, default: float) -> float:
        """A number from `low` to `high`."""
        value = self.raw(name)
        if value is None:
            return default
        numeric = isinstance(value, int | float) and not isinstance(value, bool)
        if not numeric or not math.isfinite(value) or not low <= value <= high:
            raise self.wrong(name, f"a number from {low:g} to {high:g}")
        return float(value)

    def flag(self, name: str, default: bool = False) -> bool:
        """True or false."""
        value = self.raw(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return value

    def text(self, name: str, default: str = "") -> str:
        """A text without lone surrogates."""
        value = self.raw(name)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self.wrong(name, "a text")
        return value

    def choice(self, name: str, values: Sequence[str], default: str) -> str:
        """One of some words."""
        value = self.text(name, default)
        if value not in values:
            raise self.wrong(name, "one of " + ", ".join(values))
        return value

    def object(self, name: str) -> Fields | None:
        """An object with fields of its own."""
        value = self.raw(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.wrong(name, "an object")
        inner = Fields(value, f"{self._path}{name}.")
        self._inner.append(inner)
        return inner

    def items(self, name: str, most: int) -> list[Any]:
        """A list of at most `most` items; empty where it is left out."""
        value = self.raw(name)
        if value is None:
            return []
        if not isinstance(value, list) or len(value) > most:
            raise self.wrong(name, f"a list of at most {most} items")
        return value

    def wrong(self, name: str, rule: str) -> ApiError:
        """The error for a field that breaks its rule."""
        value = repr(self._values.get(name))
        shown = value if len(value) <= 60 else value[:57] + "..."
        path = self._path + name
        return bad_request(f"{path} is {shown}; it must be {rule}.", param=path)


def _kind(value: object) -> str:
    return "list" if isinstance(value, list) else type(value).__name__


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return
    raise bad_request(f"The body has more than {MAX_DEPTH} levels; send a flatter one.")
