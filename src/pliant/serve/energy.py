"""`EnergyMeter`: joules of this machine's processors, where Linux tells them (RAPL powercap)."""

from __future__ import annotations

from pathlib import Path

#: One folder for each domain; those named `intel-rapl:N` are whole packages, AMD's too.
_ROOT = Path("/sys/class/powercap")


class _Zone:
    """One package: a counter of microjoules that begins anew after `most`."""

    def __init__(self, folder: Path) -> None:
        self._counter = folder / "energy_uj"
        self._most = int((folder / "max_energy_range_uj").read_text())
        self._last = int(self._counter.read_text())
        self.total = 0

    def read(self) -> None:
        """Add what was spent since the last reading."""
        now = int(self._counter.read_text())
        spent = now - self._last
        self.total += spent if spent >= 0 else spent + self._most
        self._last = now


class EnergyMeter:
    """Joules since it was made, of all packages; of everything that ran on them, not of us alone.

    A counter wraps after some minutes at full power, so `joules` must be asked more often than
    that, which a scrape of metrics does.
    """

    def __init__(self, root: Path = _ROOT) -> None:
        self._zones: list[_Zone] = []
        for folder in sorted(root.glob("intel-rapl:*")):
            # Names with a second colon are parts of a package, which would count twice.
            if folder.name.count(":") == 1:
                try:
                    self._zones.append(_Zone(folder))
                except (OSError, ValueError):
                    # Only root may read it on many machines, and virtual ones have none.
                    continue

    def joules(self) -> float | None:
        """What was spent; None where the machine does not say."""
        try:
            for zone in self._zones:
                zone.read()
        except (OSError, ValueError):
            self._zones = []
        return sum(zone.total for zone in self._zones) / 1e6 if self._zones else None
