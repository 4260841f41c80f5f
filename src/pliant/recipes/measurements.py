"""Measurements made on another machine, as `pliant bench --json` writes them, made use of here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from pliant.costs.device import Device
from pliant.costs.measured import MOST_STEPS, MeasuredStep, learned
from pliant.errors import PliantError, UsageError

#: No handful of measurements is larger; a file that is was not written by us.
_MOST_BYTES = 2**26


class _File(msgspec.Struct, frozen=True):
    """What is read of a file; all else that `bench` writes is passed over."""

    steps: list[msgspec.Raw]


def read_measurements(path: Path) -> list[MeasuredStep]:
    """The steps of a file: a JSON object whose `steps` are `MeasuredStep`s.

    Raises `UsageError` where it is none, or where a step cannot have been measured.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise UsageError(f"The measurements {path} cannot be read: {error.strerror}.") from error
    if len(raw) > _MOST_BYTES:
        raise UsageError(f"{path} is larger than {_MOST_BYTES} bytes, so no measurements.")
    try:
        found = msgspec.json.decode(raw, type=_File).steps
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"{path} has no measurements: {error}. Write them with `pliant bench --json`."
        ) from error
    if not 0 < len(found) <= MOST_STEPS:
        raise UsageError(f"{path} has {len(found)} steps; 1 to {MOST_STEPS} are read.")
    return [_step(item, place, path) for place, item in enumerate(found)]


def _step(raw: msgspec.Raw, place: int, path: Path) -> MeasuredStep:
    try:
        step = msgspec.json.decode(raw, type=MeasuredStep)
        if step.tokens + step.cached > step.subnet.spec.max_context:
            raise UsageError(f"The model reads {step.subnet.spec.max_context} tokens at most.")
    except (ValueError, RecursionError, PliantError) as error:
        raise UsageError(f"Step {place} of {path} cannot be used: {error}") from error
    return step


def with_measurements(devices: Sequence[Device], given: Sequence[str]) -> list[Device]:
    """The devices, each corrected by the files given for it.

    A file is `PATH` where there is one device, `NAME=PATH` where there are more; several files of
    one device are taken together. Raises `UsageError` where a name is none of the devices.
    """
    names = [device.name for device in devices]
    steps: dict[str, list[MeasuredStep]] = {}
    for text in given:
        name, equals, rest = text.partition("=")
        if not equals or name not in names:
            if len(devices) > 1:
                raise UsageError(
                    f"Which device was {text} measured on? Write it as NAME={text}, with one of "
                    f"{', '.join(names)}."
                )
            name, rest = names[0], text
        steps.setdefault(name, []).extend(read_measurements(Path(rest)))
    return [
        learned(device, steps[device.name]) if device.name in steps else device
        for device in devices
    ]
