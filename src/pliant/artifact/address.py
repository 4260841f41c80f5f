"""`X.pliant@d8-w0.75-b3`: an artifact and what to cut from it, in one word of a command line."""

from __future__ import annotations

from pathlib import Path

from pliant.errors import UsageError


def split_address(text: str) -> tuple[Path, str]:
    """The path, and the address or name after the last `@` (empty: the full shape, all planes).

    An address holds no slash, so an `@` in the name of a folder belongs to the path. `UsageError`
    where the path is empty.
    """
    path, at, address = text.rpartition("@")
    if not at or "/" in address:
        path, address = text, ""
    if not path:
        raise UsageError(f"{text!r} names no artifact; write it like X.pliant@d8-w0.75-b3.")
    return Path(path), address
