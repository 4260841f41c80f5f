"""`pliant devices`: the devices a plan can be made for, each number with its source."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from pliant.cli.options import Json, Measurements, Quiet
from pliant.cli.output import Output, facts, table
from pliant.errors import UsageError
from pliant.measurement import format_bytes

if TYPE_CHECKING:
    from pliant.costs.device import Device, Figure

Name = Annotated[
    str | None,
    typer.Argument(metavar="[DEVICE]", help="A device, to see each number with its source."),
]
Target = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        envvar="PLIANT_OUTPUT",
        metavar="FILE.json",
        help="Write the device there, what --measurements taught included.",
    ),
]


def devices(
    name: Name = None,
    measurements: Measurements = None,
    target: Target = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """List the devices that plans can be made for, or show one with the sources of its numbers.

    To add one, copy a profile, change it, and put it into the folder that is named below the list;
    or give its path as the device. With --measurements, what `pliant bench --json` wrote there
    corrects a probed device, or gives another its times; --output keeps that as a profile.
    """
    from pliant.costs.device import known_devices, load_device, user_folder

    output = Output(as_json, quiet)
    if name is not None:
        device = _shown(load_device(name), measurements or [], target)
        output.emit(msgspec.to_builtins(device), facts(_lines(device)))
        return
    if measurements or target:
        raise UsageError("Which device? Name it, as in `pliant devices l4 --measurements FILE`.")
    found = known_devices(output.note)
    columns = ("device", "", ">memory", ">GB/s", ">int8 Top/s", ">fp32 Top/s", ">watts", "")
    rows = [
        (
            device.name,
            device.title,
            format_bytes(device.memory.value),
            f"{device.bandwidth.value / 1e9:.1f}",
            f"{device.rate('int8') / 1e12:.3g}",
            f"{device.rate('fp32') / 1e12:.3g}",
            f"{device.watts.value:.0f}" if device.watts else "",
            "calibrated" if device.calibrations else "",
        )
        for device in found
    ]
    output.emit(
        {"devices": [msgspec.to_builtins(device) for device in found]},
        table("devices", columns, rows),
        f"your own profiles lie in {user_folder()}",
    )


def _shown(device: Device, measurements: list[str], target: Path | None) -> Device:
    """The device with its measurements, written to `target` where one is given."""
    from pliant.recipes.measurements import with_measurements
    from pliant.recipes.probe import save_device

    if target is not None and target.suffix != ".json":
        raise UsageError(f"{target} is no place for a profile; end its name in .json.")
    (device,) = with_measurements([device], measurements)
    if target is not None:
        save_device(msgspec.structs.replace(device, name=target.stem), target)
    return device


def _lines(device: Device) -> list[tuple[str, object]]:
    def sourced(figure: Figure, scale: float, unit: str) -> str:
        parts = " + ".join(" x ".join(f"{x:g}" for x in product) for product in figure.derived)
        told = [figure.source, figure.date, *([f"= {parts}"] if parts else [])]
        told += [f"checked {figure.checked}"] if figure.checked else []
        told += [figure.url] if figure.url else []
        return f"{figure.value / scale:.4g} {unit}  ({'; '.join(told)})"

    lines: list[tuple[str, object]] = [
        ("device", f"{device.name}: {device.title}"),
        ("memory", sourced(device.memory, 1e9, "GB")),
        ("bandwidth", sourced(device.bandwidth, 1e9, "GB/s")),
    ]
    lines += [(name, sourced(rate, 1e12, "Top/s")) for name, rate in device.rates.items()]
    if device.watts:
        lines.append(("power", sourced(device.watts, 1, "W")))
    if device.transfer:
        times = device.transfer
        lines.append(
            ("measured there", f"{times.samples} steps, each missed by {times.error:.0%} where it "
             f"is left out: {times.operation_seconds * 1e12:.3g} ps an operation, "
             f"{times.byte_seconds * 1e12:.3g} ps a byte, {times.operator_seconds * 1e6:.3g} us an "
             f"operator, {times.step_seconds * 1e6:.3g} us a step")
        )  # fmt: skip
    lines += [
        ("measured there", f"{item.measured_there} steps of {item.threads} threads, missed by "
         f"{item.decode_error:.0%} of a token and {item.prefill_error:.0%} of a prompt")
        for item in device.calibrations if item.measured_there
    ]  # fmt: skip
    if device.notes:
        lines.append(("note", device.notes))
    return lines
