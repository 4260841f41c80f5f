"""A jinja2 environment for templates that nobody checked: no way out, and no way to run for ever.

jinja2's immutable sandbox keeps a template from reaching Python's internals and from changing what
it was given. It does not bound work: `range` in nested loops, a macro that calls itself twice, or a
text doubled in a loop would hang or fill the memory. Here every loop step and every call is
counted, and every text or list that a template makes is measured.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

#: Loop steps and calls of one rendering, large values counting as several. Real templates need
#: about 50 for a message, so this serves thousands of messages and ends in about a second.
MAX_STEPS = 500_000
#: Characters of any one value: far above a context window, far below the memory.
MAX_SIZE = 4_000_000
#: Items of any one value on all its levels; a message of a conversation has about five.
MAX_ITEMS = 200_000
#: The largest number a template may hand to a function, where it usually means a width or a count.
MAX_ARGUMENT = 1_000_000

#: Items and characters that cost one step: about what Python handles in its time.
_ITEMS_PER_STEP = 2
_CHARACTERS_PER_STEP = 1_000
#: A call of a macro takes this much longer than a step of a loop.
_STEPS_PER_CALL = 5
#: Filters that look at one level of what they are given, so that its depth need not be measured.
_SHALLOW = frozenset({"length", "count", "first", "last"})
_WIDE_PERCENT = re.compile(r"%[^A-Za-z%]*?(\d{6}|\*)")
_WIDE_BRACES = re.compile(r"\{[^}]*:[^}]*\d{6}")
#: Functions whose result can be as large as the product of what they are given.
_MULTIPLYING = frozenset(
    {"replace", "join", "expandtabs", "translate", "indent", "wordwrap", "tojson"}
)


class TemplateSandbox(ImmutableSandboxedEnvironment):
    """The environment of chat templates: transformers' names and filters, bounded work.

    Call `reset` before each rendering; a template that passes a bound raises `SecurityError`.
    """

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, loopcontrols],
            finalize=self.check,
        )
        self._steps = 0
        self.globals = {name: self.globals[name] for name in ("range", "cycler", "joiner")}
        self.globals.update(
            dict=_make_dict,
            namespace=_ClosedNamespace,
            raise_exception=_raise_exception,
            strftime_now=lambda form: datetime.now().strftime(form),
        )
        self.filters["tojson"] = _to_json
        self.filters = {name: self._bounded(name, f) for name, f in self.filters.items()}
        self.filters["_steps"] = self._count_items
        self.filters["_check"] = self.check

    def reset(self) -> None:
        """Begin to count anew."""
        self._steps = 0

    def check(self, value: Any) -> Any:
        """`value`, unless it is too large to be written out."""
        self._measure(value)
        return value

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        """The syntax tree, with a count at every loop and a measure at every joined text."""
        tree = super()._parse(source, name, filename)
        for loop in list(tree.find_all(nodes.For)):
            loop.iter = _filter(loop.iter, "_steps")
        for joined in list(tree.find_all(nodes.Concat)):
            joined.nodes = [_filter(node, "_check") for node in joined.nodes]
        for block in list(tree.find_all(nodes.AssignBlock)):
            block.filter = _filter(block.filter, "_check")
        return tree

    def call(self, context: Context, function: Any, /, *arguments: Any, **named: Any) -> Any:
        """Call `function` for the template, counted and measured."""
        self._count(_STEPS_PER_CALL)
        # The sandbox wraps `str.format`, and leaves the method itself in `__wrapped__`.
        method = getattr(function, "__wrapped__", function)
        text = getattr(method, "__self__", None)
        owner = (text,) if isinstance(text, str) else ()
        name = getattr(method, "__name__", "")
        self._check_arguments(name, (*owner, *arguments, *named.values()))
        return self.check(super().call(context, function, *arguments, **named))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """`left operator right`, refused where the result would be too large."""
        if operator == "*":
            _refuse_repetition(left, right)
            _refuse_repetition(right, left)
        if operator == "**" and not (isinstance(right, int | float) and abs(right) <= 64):
            raise SecurityError(f"it raises to the power {right!r}")
        if operator == "%" and isinstance(left, str) and _WIDE_PERCENT.search(left):
            raise SecurityError(f"it formats with the width in {left[:40]!r}")
        return self.check(super().call_binop(context, operator, left, right))

    def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
        """Refuse at once what jinja2 would let pass while it is only printed."""
        raise SecurityError(f"it reaches for {attribute!r} of a {type(obj).__name__}")

    def _count(self, steps: int = 1) -> None:
        self._steps += steps
        if self._steps > MAX_STEPS:
            raise SecurityError(f"it takes more than {MAX_STEPS:,} loop steps and calls")

    def _count_items(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self._count()
            yield item

    def _bounded(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The filter `function` with its arguments and its result measured."""

        def bounded(*arguments: Any, **named: Any) -> Any:
            if name in _SHALLOW:
                return function(*arguments, **named)
            self._check_arguments(name, (*arguments, *named.values()))
            return self.check(function(*arguments, **named))

        # Marks such as `pass_environment` live in the function's attributes.
        bounded.__dict__.update(getattr(function, "__dict__", {}))
        return bounded

    def _check_arguments(self, name: str, arguments: tuple[Any, ...]) -> None:
        sizes = []
        for argument in arguments:
            if isinstance(argument, int) and abs(argument) > MAX_ARGUMENT:
                raise SecurityError(f"it passes the number {argument} to {name}")
            size = self._measure(argument)
            sizes.append(abs(argument) if isinstance(argument, int) else size)
        if name in _MULTIPLYING and (sum(sizes) + 1) * max(sizes, default=1) > 100 * MAX_SIZE:
            raise SecurityError(f"it makes a text of more than {MAX_SIZE:,} characters by {name}")
        text = str(arguments[0]) if name in ("format", "format_map") and arguments else ""
        if _WIDE_PERCENT.search(text) or _WIDE_BRACES.search(text):
            raise SecurityError(f"it formats with the width in {text[:40]!r}")

    def _measure(self, value: Any) -> int:
        """Characters and items in `value` on all levels; refused where they are too many."""
        characters, items, waiting = 0, 0, [value]
        while waiting:
            item = waiting.pop()
            items += 1
            if isinstance(item, str | bytes):
                characters += len(item)
            elif isinstance(item, int):
                characters += item.bit_length() // 3
            elif isinstance(item, dict):
                waiting += [*item.keys(), *item.values()]
            elif isinstance(item, list | tuple | set | frozenset):
                waiting += item
            if characters > MAX_SIZE:
                raise SecurityError(f"it makes a value of more than {MAX_SIZE:,} characters")
            if items + len(waiting) > MAX_ITEMS:
                raise SecurityError(f"it makes a value of more than {MAX_ITEMS:,} items")
        self._count(1 + items // _ITEMS_PER_STEP + characters // _CHARACTERS_PER_STEP)
        return characters + items


class _Generation(Extension):
    """`{% generation %}` marks what the model writes; it only matters to training."""

    tags = {"generation"}  # noqa: RUF012 (the type that jinja2 declares)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _ClosedNamespace(Namespace):
    """jinja2's `namespace` without names that begin with an underscore."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError(f"it stores the attribute {name!r} on a namespace")
        super().__setitem__(name, value)


def _filter(node: nodes.Node | None, name: str) -> nodes.Filter:
    """The expression `node | name`; with None, the filter of a block."""
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno if node else 1)


def _refuse_repetition(items: Any, count: Any) -> None:
    sized = isinstance(items, str | list | tuple) and isinstance(count, int)
    limit = MAX_SIZE if isinstance(items, str) else MAX_ITEMS
    if sized and len(items) * count > limit:
        raise SecurityError(f"it repeats {len(items)} items {count} times")


def _make_dict(*arguments: Any, **named: Any) -> dict[Any, Any]:
    return dict(*arguments, **named)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as transformers writes it; jinja2's own filter escapes for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
