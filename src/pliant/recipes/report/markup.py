"""HTML that cannot be broken out of: all text is escaped, whoever wrote it."""

from __future__ import annotations

import re
from html import escape

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9:-]*")
#: Elements without an end; everything else has one, as XML wants it inside of pictures.
_VOID = frozenset({"meta", "br"})


class Markup(str):
    """Text that is HTML already; only `element` and `joined` make it, from escaped parts."""

    __slots__ = ()


def text(content: object) -> Markup:
    """Any value as text of a page: escaped, and what cannot be seen is shown as U+FFFD.

    Names in artifacts come from strangers: controls and marks that turn the direction of writing
    could make a page read as something else.
    """
    if isinstance(content, Markup):
        return content
    seen = "".join(
        letter if letter.isprintable() or letter == "\n" else "\ufffd" for letter in str(content)
    )
    return Markup(escape(seen, quote=True))


def element(name: str, /, *children: object, **attributes: object) -> Markup:
    """An element; a child that is no `Markup` is escaped, and so is every attribute.

    Attributes are named as in Python: `class_` is `class`, `stroke_width` is `stroke-width`.
    """
    pairs = []
    for key, value in attributes.items():
        written = key.rstrip("_").replace("_", "-")
        assert _NAME.fullmatch(written), key
        pairs.append(f' {written}="{text(value)}"')
    start = f"<{name}{''.join(pairs)}>"
    if name in _VOID:
        return Markup(start)
    return Markup(f"{start}{joined(*children)}</{name}>")


def joined(*parts: object) -> Markup:
    """Parts one after another."""
    return Markup("".join(text(part) for part in parts))
