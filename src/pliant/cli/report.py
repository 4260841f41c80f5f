"""`pliant report`: what is known of an artifact as one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pliant.cli.options import Address, Context, Json, Quiet
from pliant.cli.output import Output, facts
from pliant.measurement import format_bytes

if TYPE_CHECKING:
    from pliant.recipes.report import Report

ReportPath = Annotated[
    Path,
    typer.Option(
        "--output", "-o", envvar="PLIANT_OUTPUT", metavar="FILE.html", help="The page to write."
    ),
]
Devices = Annotated[
    str,
    typer.Option(
        "--device",
        "-d",
        envvar="PLIANT_DEVICE",
        metavar="NAME,...",
        help="Devices of the table, by name or profile; `all` (the default) or `none`.",
    ),
]
Force = Annotated[
    bool, typer.Option("--force", envvar="PLIANT_FORCE", help="Replace a file that exists.")
]


def report(
    address: Address,
    output_path: ReportPath,
    device: Devices = "all",
    context: Context = None,
    force: Force = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a page of an artifact: frontier, shapes, planes by matrix, receipts, devices.

    Nothing is measured: the page shows what build and fit measured, and says where a number is a
    prediction. It loads nothing, so it can be sent or published as it is.
    """
    from pliant.artifact import Artifact, split_address
    from pliant.costs.device import known_devices, load_device
    from pliant.export.target import check_target, new_target
    from pliant.recipes.report import make_report, render_page

    output = Output(as_json, quiet)
    check_target(output_path, is_folder=False, force=force)
    path, cut = split_address(address)
    if device == "all":
        devices = known_devices(output.note)
    else:
        names = [] if device == "none" else device.split(",")
        devices = [load_device(name.strip()) for name in names]
    made = make_report(Artifact.open(path), cut, devices, context)
    page = render_page(made).encode()
    with new_target(output_path, len(page), is_folder=False, force=force) as place:
        place.write_bytes(page)
    for note in made.notes:
        output.note(f"note: left out: {note}")
    _emit(output, made, output_path, len(page))


def _emit(output: Output, made: Report, path: Path, num_bytes: int) -> None:
    fitting = {plan.device.name: plan.chosen is not None for plan in made.devices}
    fields = {
        "output": str(path),
        "num_bytes": num_bytes,
        "measured": len(made.measured),
        "predicted": len(made.predicted),
        "shown": made.shown_name,
        "devices": fitting,
        "notes": made.notes,
    }
    lines = [
        ("written", f"{path}, {format_bytes(num_bytes)}"),
        ("measured", f"{len(made.measured)} cuts"),
        ("predicted", f"{len(made.predicted)} cuts of the frontier"),
        ("devices", f"something fits on {sum(fitting.values())} of {len(fitting)}"),
    ]
    output.emit(fields, facts(lines))
