"""`pliant probe`: measure this machine, so that plans and fits are calibrated here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from pliant.cli.options import Json, Quiet, Threads
from pliant.cli.output import Output, facts, table
from pliant.measurement import format_bytes

if TYPE_CHECKING:
    from pliant.costs.device import Device

Target = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        envvar="PLIANT_OUTPUT",
        metavar="FILE.json",
        help="Where the profile goes (the user's folder, as `this`).",
    ),
]


def probe(
    target: Target = None,
    threads: Threads = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure this machine in less than a minute and keep the profile as the device `this`.

    Read bandwidth by threads, rates of int8 and fp32, each kernel by planes and tokens, what the
    rest of a step takes, storage, and the memory a process may use, cgroup limits included. With
    --json the profile goes to stdout too; carried to another machine it is a device there.
    """
    from pliant.errors import UsageError
    from pliant.recipes.probe import probe as measure
    from pliant.recipes.probe import save_device

    output = Output(as_json, quiet)
    if target is not None and target.suffix != ".json":
        raise UsageError(f"{target} is no place for a profile; end its name in .json.")
    output.note("this takes less than a minute; other programs disturb it")
    with output.progress() as progress:
        device = measure(threads, progress)
    path = save_device(device, target)
    output.emit(msgspec.to_builtins(device), facts(_lines(device)), _kernels(device))
    if device.disturbance:
        output.note(f"warning: {device.disturbance}; probe again when they have ended")
    output.note(f"written to {path}")


def _lines(device: Device) -> list[tuple[str, object]]:
    reads = ", ".join(
        f"{rate.value / 1e9:.1f} with {count}" for count, rate in device.read_rates.items()
    )
    storage = ", ".join(
        f"{item.bytes_per_second / 1e9:.2f} in pieces of {format_bytes(item.chunk_bytes)}"
        for item in device.storage
    )
    errors = "; ".join(
        f"{item.threads} threads: decode {item.decode_error:.1%}, prefill {item.prefill_error:.1%}"
        for item in device.calibrations
    )
    return [
        ("machine", f"{device.title}; kernels {device.kernels}"),
        ("read bandwidth", f"GB/s by threads: {reads}"),
        ("int8, fp32", f"{device.rate('int8') / 1e9:.0f}, {device.rate('fp32') / 1e9:.0f} Gop/s"),
        ("memory", f"{format_bytes(device.memory_bytes)} usable of "
                   f"{format_bytes(device.memory.value)}"),
        ("around a model", f"{format_bytes(device.runtime_bytes)} of Python and libraries"),
        ("storage", f"GB/s: {storage}" if storage else "cannot be measured here"),
        ("held-out error", errors),
    ]  # fmt: skip


def _kernels(device: Device) -> object:
    """Billion weights a second by planes: one token from cache and memory, and many tokens."""
    rows = []
    for calibration in device.calibrations:
        largest = max(point.set_bytes for point in calibration.products)
        for planes in sorted({point.planes for point in calibration.products}):
            many = calibration.product_seconds(planes, 128, 0.0) / 128
            rows.append(
                (
                    str(calibration.threads),
                    str(planes),
                    f"{1e-9 / calibration.product_seconds(planes, 1, 1.0):.1f}",
                    f"{1e-9 / calibration.product_seconds(planes, 1, largest):.1f}",
                    f"{1e-9 / many:.1f}",
                )
            )
    columns = (">threads", ">planes", ">1 token, cache", ">1 token, memory", ">128 tokens")
    return table("billion weights a second", columns, rows)
