"""`Server`: `pliant serve` in a process of its own; `Watch`: what is seen of it under load."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import psutil
from soak_clients import PATIENCE

if TYPE_CHECKING:
    from soak import Soak

#: What the server of a soak runs and lets wait.
RUNNING, WAITING = 8, 16
#: Its clients: prefixes are shared within one of them, and they are served in turn.
KEYS = tuple(f"soak-key-{place}" for place in range(3))

#: Seconds after a start in which memory still grows: places for threads, buffers and timers of
#: connections that were left fill up; and those for which it is looked at then, at least.
SETTLING_SECONDS, LEAST_SECONDS = 90, 60


class Server:
    """`pliant serve` with keys in a file, on one port through all its lives."""

    def __init__(self, artifact: str, cache_memory: str, keys: Path) -> None:
        keys.write_text("\n".join(KEYS))
        self._command = [sys.executable, "-m", "pliant.cli", "serve", artifact, "--json", "--quiet",
                         "--cache-memory", cache_memory, "--max-sequences", str(RUNNING),
                         "--max-waiting", str(WAITING), "--keys", str(keys), "--port"]  # fmt: skip
        self.ready = self._start("0")

    def _start(self, port: str) -> dict[str, Any]:
        self._process = subprocess.Popen([*self._command, port], stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        ready: dict[str, Any] = json.loads(self._process.stdout.readline())
        return ready

    @property
    def memory(self) -> int:
        """Bytes of it that are resident."""
        return int(psutil.Process(self._process.pid).memory_info().rss)

    @property
    def open_files(self) -> int:
        """Files and connections."""
        return int(psutil.Process(self._process.pid).num_fds())

    def counters(self) -> dict[str, float]:
        """What it has counted itself."""
        headers = {"Authorization": f"Bearer {KEYS[0]}"}
        page = httpx.get(f"{self.ready['url']}/metrics", headers=headers, timeout=PATIENCE)
        lines = page.raise_for_status().text.splitlines()
        found = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {name.split("{")[0]: float(value) for name, value in found}

    def at_rest(self) -> dict[str, float]:
        """Its counters when nothing runs or waits, or what they are when patience is at an end."""
        end = time.monotonic() + PATIENCE
        while True:
            found = self.counters()
            if not _busy(found) or time.monotonic() > end:
                return found
            time.sleep(0.05)

    def kill_and_restart(self, soak: Soak) -> float:
        """An end without a word, and a new beginning at the same address; seconds it was away."""
        soak.away, soak.kills = True, soak.kills + 1
        began = time.monotonic()
        self._process.kill()
        self._process.wait(PATIENCE)
        self._start(self.ready["url"].rsplit(":", 1)[1])
        # Those that began while it was away may end later than this.
        soak.away, soak.kills = False, soak.kills + 1
        return time.monotonic() - began

    def stop(self) -> int:
        """Its exit code, when it was asked to end."""
        self._process.terminate()
        return self._process.wait(PATIENCE)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *error: object) -> None:
        """Whatever happened, it does not go on behind the soak."""
        self._process.kill()
        self._process.wait()


class Watch:
    """What happens while requests come: the kill, and readings of memory and of caches."""

    def __init__(self, server: Server, soak: Soak, seconds: float) -> None:
        self._server, self._soak, self._seconds = server, soak, seconds
        self.away_seconds, self._answered_before = 0.0, 0
        self._readings: list[tuple[float, int]] = []
        self.by_minute: list[float] = []

    def run(self, load: threading.Thread) -> None:
        """Until the load is over."""
        began, every = time.monotonic(), min(1.0, self._seconds / 20)
        while load.is_alive():
            load.join(every)
            now = time.monotonic() - began
            if not self.away_seconds and now >= self._seconds / 10:
                self.away_seconds = self._server.kill_and_restart(self._soak)
                self._answered_before = self._soak.outcomes["answered"]
                now = time.monotonic() - began
            self._readings.append((now, self._server.memory))
            counters = self._server.counters()
            if counters["pliant:kv_cache_bytes"] > counters["pliant:kv_budget_bytes"]:
                self._soak.fail("caches take more than they may")
            if now >= 60 * (len(self.by_minute) + 1):
                self._say(counters)

    @property
    def answered_after_restart(self) -> int:
        """Right answers of the second life."""
        return self._soak.outcomes["answered"] - self._answered_before

    @property
    def warm(self) -> list[int]:
        """Memory from when it should be flat."""
        since = self._warm_since if self.is_judged else 0.3 * self._seconds
        return [size for now, size in self._readings if now >= since]

    @property
    def is_judged(self) -> bool:
        """Whether memory was flat long enough to say something."""
        return self._warm_since + LEAST_SECONDS <= self._seconds

    @property
    def _warm_since(self) -> float:
        return max(0.3 * self._seconds, 0.1 * self._seconds + SETTLING_SECONDS)

    def growth(self) -> float:
        """Of warm memory, from the median of its first tenth to that of its last."""
        part = max(len(self.warm) // 10, 1)
        return statistics.median(self.warm[-part:]) / statistics.median(self.warm[:part]) - 1

    def _say(self, counters: dict[str, float]) -> None:
        self.by_minute.append(round(self._readings[-1][1] / 1e6, 1))
        said = f"minute {len(self.by_minute)}: {self.by_minute[-1]} MB", dict(self._soak.outcomes)
        print(*said, pressure(counters), self._soak.wrong[:3], file=sys.stderr, flush=True)


def pressure(counters: dict[str, float]) -> dict[str, int]:
    """How scarce memory was, in numbers of texts, kept prefixes and tokens."""
    names = {
        "preemptions": "vllm:num_preemptions_total",
        "recomputed_tokens": "pliant:recomputed_tokens_total",
        "evictions": "pliant:evictions_total",
        "written_tokens": "vllm:generation_tokens_total",
        "prefix_tokens": "vllm:prefix_cache_hits_total",
    }
    return {name: int(counters[counted]) for name, counted in names.items()}


def left_behind(counters: dict[str, float]) -> dict[str, int]:
    """Texts and bytes of caches in use where nobody asks for anything: all of them 0."""
    in_use = counters["pliant:kv_cache_bytes"] - counters["pliant:kv_prefix_bytes"]
    return {"texts_left": int(_busy(counters)), "cache_bytes_left": int(in_use)}


def _busy(counters: dict[str, float]) -> float:
    return counters["vllm:num_requests_running"] + counters["vllm:num_requests_waiting"]
