"""`Device`: what a plan knows of a machine, each number with its source; read from TOML or JSON.

A profile in `devices/` holds data-sheet numbers; `pliant probe` writes one with measured numbers
and calibrations. A stranger adds a device by copying a file.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec
import platformdirs

from pliant.costs.calibration import Calibration
from pliant.costs.operators import Arithmetic
from pliant.costs.transfer import Transfer
from pliant.errors import UsageError

#: Profiles that come with pliant.
PROFILES = Path(__file__).parent / "devices"
#: Where a rate is missing the next one of these stands for it; a plan says so.
_RATE_FALLBACKS: dict[Arithmetic, tuple[Arithmetic, ...]] = {
    "int8": ("int8", "fp16", "fp32"),
    "fp16": ("fp16", "fp32"),
    "fp32": ("fp32", "fp16"),
}

#: How the source of a number begins that no document was found for.
UNCONFIRMED = "not confirmed: "
#: Published figures are rounded; their parts may make this much more or less.
_ROUNDED = 0.01
#: Share of the CPUs that others may use during a probe; what the system itself does is less.
DISTURBED_SHARE = 0.05


class Figure(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A number, where it was published or measured, and when.

    `url` is the document that it was compared with on the day `checked`; a number that no document
    was found for has a source that begins with `not confirmed: `. `derived` is how it follows from
    stated parts, a sum of products: `[[4, 2.4e9, 16]]` are 4 cores at 2.4 GHz with 16 operations a
    cycle. Parts that do not make the value raise `ValueError`.
    """

    value: float
    source: str
    date: str
    url: str = ""
    checked: str = ""
    derived: tuple[tuple[float, ...], ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.value < 1e18 or not self.source or not self.date:
            raise ValueError("a figure is above 0 and has a source and a date")
        made = sum(math.prod(parts) for parts in self.derived)
        if self.derived and abs(made / self.value - 1) > _ROUNDED:
            raise ValueError(f"the parts of a figure make {made:g}, not its value {self.value:g}")

    @property
    def confirmed(self) -> bool:
        """Whether a document says so, or it was measured."""
        return not self.source.startswith(UNCONFIRMED)


class StorageRate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bytes a second read from storage in pieces of `chunk_bytes`."""

    chunk_bytes: int
    bytes_per_second: float


class Device(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A machine: memory in bytes, read bandwidth in byte/s, rates in operations/s.

    `rates` are peaks by arithmetic; a multiplication and an addition are two operations. `memory`
    is all of it, `usable_memory_bytes` (probed) what a process may take, `runtime_bytes` (probed)
    what the interpreter needs around a model. `runs_pliant` is false where only another engine
    could run the model. `read_rates` are byte/s by number of threads. `others_share` (probed) is
    the share of the CPUs that other programs used meanwhile.
    """

    name: str
    title: str
    kind: Literal["board", "phone", "laptop", "server", "accelerator", "this"]
    memory: Figure
    bandwidth: Figure
    rates: dict[Arithmetic, Figure]
    watts: Figure | None = None
    runs_pliant: bool = True
    notes: str = ""
    usable_memory_bytes: int = 0
    runtime_bytes: int = 0
    kernels: str = ""
    read_rates: dict[str, Figure] = {}
    storage: tuple[StorageRate, ...] = ()
    calibrations: tuple[Calibration, ...] = ()
    transfer: Transfer | None = None
    others_share: float = 0.0

    def rate(self, arithmetic: Arithmetic) -> float:
        """Peak operations/s; of the next best arithmetic where this one is not known."""
        for name in _RATE_FALLBACKS[arithmetic]:
            if name in self.rates:
                return self.rates[name].value
        raise UsageError(f"{self.name} has no rate of int8, fp16 or fp32; add one to its profile.")

    @property
    def memory_bytes(self) -> int:
        """Bytes a model may use here: the probed limit, or nine tenths of what is built in.

        The tenth is for the system; a profile of a probed machine knows better.
        """
        return self.usable_memory_bytes or int(0.9 * self.memory.value)

    @property
    def disturbance(self) -> str:
        """A sentence on a probe that other programs disturbed; empty for an undisturbed one."""
        if self.others_share <= DISTURBED_SHARE:
            return ""
        return (
            f"other programs used {self.others_share:.0%} of the CPUs during the probe of "
            f"{self.name}, which is faster than that"
        )

    def calibration(self, threads: int | None = None) -> Calibration | None:
        """The calibration for so many threads, of the most threads by default; None without."""
        found = [item for item in self.calibrations if threads in (None, item.threads)]
        return max(found, key=lambda item: item.threads, default=None)


def device_names() -> list[str]:
    """Names of all profiles that come with pliant or lie in the user's folder."""
    names = {path.stem for folder in _folders() for path in folder.glob("*") if _is_profile(path)}
    return sorted(names)


def known_devices(warn: Callable[[str], None]) -> list[Device]:
    """All devices of `device_names`; `warn` is told of a user's profile that cannot be read."""
    found = []
    for name in device_names():
        try:
            found.append(load_device(name))
        except UsageError as error:
            warn(str(error))
    return found


def load_device(name: str) -> Device:
    """The device of a name, or of a file that ends in .toml or .json.

    Raises `UsageError` where there is none, or where its profile lacks what every plan needs.
    """
    given = Path(name)
    if given.suffix in (".toml", ".json"):
        return read_device(given)
    for folder in _folders():
        for suffix in (".json", ".toml"):
            path = folder / f"{name}{suffix}"
            if path.is_file():
                return read_device(path)
    raise UsageError(
        f"There is no device {name!r}; use one of {', '.join(device_names())}, `this` after "
        "`pliant probe`, or the path of a profile (.toml or .json)."
    )


def read_device(path: Path) -> Device:
    """The device that a file describes; `UsageError` where it cannot be read as one."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UsageError(f"The profile {path} cannot be read: {error.strerror}.") from error
    try:
        if path.suffix == ".toml":
            return msgspec.toml.decode(raw, type=Device)
        return msgspec.json.decode(raw, type=Device)
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"The profile {path} is no device: {error}. Copy one of {PROFILES} and change it, or "
            "probe again."
        ) from error


def user_folder() -> Path:
    """Where a user's own profiles lie, that of this machine among them."""
    return platformdirs.user_config_path("pliant") / "devices"


def _folders() -> tuple[Path, ...]:
    return user_folder(), PROFILES


def _is_profile(path: Path) -> bool:
    return path.suffix in (".toml", ".json")
