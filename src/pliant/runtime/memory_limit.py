"""`usable_memory`: bytes this process may take, limits of its control groups included."""

from __future__ import annotations

from pathlib import Path

import msgspec
import psutil

_CGROUPS = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")
#: A limit above any memory is how version 1 says that there is none.
_NO_LIMIT = 2**60


class MemoryHere(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes built in, available now, and the limit of the control group (0: none) with its use."""

    total_bytes: int
    available_bytes: int
    limit_bytes: int = 0
    limit_used_bytes: int = 0

    @property
    def usable_bytes(self) -> int:
        """What a process may still take: the lower of what is free and what the limit leaves."""
        if self.limit_bytes == 0:
            return self.available_bytes
        return max(0, min(self.available_bytes, self.limit_bytes - self.limit_used_bytes))


def usable_memory(cgroups: Path = _CGROUPS, own: Path = _OWN) -> MemoryHere:
    """The memory of this machine and of this process's control groups, versions 1 and 2."""
    memory = psutil.virtual_memory()
    limit, used = 0, 0
    for folder in _group_folders(cgroups, own):
        found = _number(folder / "memory.max") or _number(folder / "memory.limit_in_bytes")
        if 0 < found < _NO_LIMIT and (limit == 0 or found < limit):
            limit = found
            used = _number(folder / "memory.current") or _number(folder / "memory.usage_in_bytes")
            # What files occupy is given back when it is needed.
            used = max(0, used - _inactive_file(folder / "memory.stat"))
    return MemoryHere(
        total_bytes=int(memory.total),
        available_bytes=int(memory.available),
        limit_bytes=limit,
        limit_used_bytes=used,
    )


def _group_folders(cgroups: Path, own: Path) -> list[Path]:
    """Folders of this process's groups and of all groups above them."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return []
    folders = []
    for line in lines:
        _, controllers, place = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root = cgroups / "memory" if controllers else cgroups
        folder = root / place.lstrip("/")
        while True:
            folders.append(folder)
            if folder in (root, folder.parent):
                break
            folder = folder.parent
    return folders


def _number(path: Path) -> int:
    """The number in a file; 0 for `max` and where there is none."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0


def _inactive_file(path: Path) -> int:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    for line in lines:
        name, _, count = line.partition(" ")
        if name in ("inactive_file", "total_inactive_file"):
            return int(count)
    return 0
