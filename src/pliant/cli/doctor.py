"""`pliant doctor`: whether this machine is set up for speed, with an exit code for scripts."""

from __future__ import annotations

from typing import Annotated

import msgspec
import typer

from pliant.cli.options import Json, Quiet
from pliant.cli.output import Output, table

Strict = Annotated[
    bool,
    typer.Option(
        "--strict", envvar="PLIANT_STRICT", help="Exit with 1 for advice too, not only problems."
    ),
]


def doctor(strict: Strict = False, as_json: Json = False, quiet: Quiet = False) -> None:
    """Look at kernels, threads, bandwidth, memory, pages, extras; say what to do about each.

    Exit code 0 where the engine can run as it should, 1 where something keeps it from that.
    """
    from pliant.errors import PliantError
    from pliant.recipes.doctor import examine, worst

    output = Output(as_json, quiet)
    with output.progress() as progress:
        findings = examine(progress)
    state = worst(findings)
    rows = [(one.topic, one.state, one.found) for one in findings]
    advice = [f"{one.topic}: {one.advice}" for one in findings if one.advice]
    output.emit(
        {"state": state, "findings": [msgspec.to_builtins(one) for one in findings]},
        table("", ("", "", ""), rows),
        *advice,
    )
    if state == "problem" or (strict and state == "advice"):
        bad = [one.topic for one in findings if one.state in ("problem", "advice")]
        raise PliantError(f"Look at {', '.join(bad)}; what to do is said above.")
