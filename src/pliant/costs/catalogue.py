"""Public model configs by name, numbers only: plans need no download and no network."""

from __future__ import annotations

import difflib
import json
from functools import cache
from pathlib import Path
from typing import Any

_FILE = Path(__file__).with_name("catalogue.json")


@cache
def catalogue() -> dict[str, dict[str, Any]]:
    """Hub id -> the fields of its config.json that decide what is computed."""
    found: dict[str, dict[str, Any]] = json.loads(_FILE.read_text(encoding="utf-8"))
    return found


def catalogued(name: str) -> dict[str, Any] | None:
    """The config of a hub id, or of its last part, whatever the case; None where there is none."""
    wanted = name.lower()
    for identifier, config in catalogue().items():
        if wanted in (identifier.lower(), identifier.lower().partition("/")[2]):
            return config
    return None


def similar(name: str) -> list[str]:
    """Up to three names of the catalogue like `name`."""
    short = {identifier.partition("/")[2].lower(): identifier for identifier in catalogue()}
    near = difflib.get_close_matches(name.lower().rpartition("/")[2], short, 3, 0.4)
    return [short[item] for item in near]
