"""Clients of all kinds at once against a server that has too little memory for them.

`python tests/serve/soak.py X.pliant --seconds 1800` runs it for long (`make soak`); the suite runs
some seconds of it. First its capacity is measured: the requests of this mix that it finishes each
second while as many clients ask as it has places, for running and for waiting. Then requests come
at random times, 1.5 times as many, whatever becomes of those before (an open loop); what the server
refuses with 429 has been answered. After a tenth of the time the server is killed (SIGKILL) and
started again; only requests of that time may be cut off. After three tenths it is warm: its prefix
cache is full, and connections that were left within a request run out as fast as they come. From
then on its memory may grow by 2 %. Greedy answers must be those of an idle server, nothing may
hang, and every request ends with an answer or an error.

Its last line is a JSON object with everything that was counted; the exit code says whether all of
the above holds.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from typing import Any

import httpx
import psutil
from soak_clients import PATIENCE, PROMPTS, Client

#: What the server of a soak runs and lets wait.
RUNNING, WAITING = 8, 16
#: Requests that come for each one that it can answer.
LOAD = 1.5
#: Threads that send: as many as can be in the server, and some who read slowly or are refused.
SENDERS = 4 * (RUNNING + WAITING)
#: Seconds of warm memory without which its growth says nothing, and what it may grow by.
LEAST_SECONDS, MOST_GROWTH = 60, 0.02


class Soak:
    """Requests at a server, what became of them, and what was wrong."""

    def __init__(self, url: str, model: str, max_tokens: int) -> None:
        self.url, self.model, self.max_tokens = url, model, max_tokens
        self.outcomes: Counter[str] = Counter()
        self.wrong: list[str] = []
        #: Seconds by which requests were sent later than they came.
        self.late: list[float] = []
        #: How often the server was killed or came back, and whether it is away just now.
        self.kills, self.away = 0, False
        self._turn = threading.Lock()
        self.expected = self.idle_answers()

    def count(self, outcome: str) -> None:
        """A request has ended so."""
        with self._turn:
            self.outcomes[outcome] += 1

    def fail(self, what: str) -> None:
        """A request has ended as none may."""
        with self._turn:
            self.wrong.append(what)

    def idle_answers(self) -> list[str]:
        """What each prompt is answered with while nobody else asks."""
        with httpx.Client(base_url=self.url, timeout=PATIENCE) as http:
            answers = [http.post("/v1/completions", content=self.body(p)) for p in PROMPTS]
        return [answer.raise_for_status().json()["choices"][0]["text"] for answer in answers]

    def body(self, prompt: str, **more: Any) -> bytes:
        """A request for greedy text of a known length."""
        fields = {"model": self.model, "prompt": prompt, "max_tokens": self.max_tokens,
                  "temperature": 0, "ignore_eos": True, **more}  # fmt: skip
        return json.dumps(fields).encode()

    def judge(self, place: int, text: str) -> str:
        """The outcome of an answer, which must be that of an idle server."""
        if text != self.expected[place]:
            raise ValueError(f"prompt {place}: {text!r} is not {self.expected[place]!r}")
        return "answered"

    def saturate(self, seconds: float, clients: int, seed: int = 0) -> float:
        """Let `clients` ask one request behind the other; those finished a second."""
        end, finished = time.monotonic() + seconds, 0

        def work(client: Client) -> None:
            nonlocal finished
            while time.monotonic() < end:
                is_served = client.one() not in ("refused", None)
                with self._turn:
                    finished += is_served and time.monotonic() < end

        self._together(work, clients, seed, seconds)
        return finished / seconds

    def offer(self, rate: float, seconds: float, seed: int) -> int:
        """Send requests at random times, `rate` a second, however they end; returns how many."""
        draw, came, began = random.Random(seed), [0.0], time.monotonic()
        while came[-1] < seconds:
            came.append(came[-1] + draw.expovariate(rate))
        left = iter(came[1:-1])

        def work(client: Client) -> None:
            while True:
                with self._turn:
                    due = next(left, None)
                if due is None:
                    return
                time.sleep(max(began + due - time.monotonic(), 0))
                late = time.monotonic() - began - due
                client.one()
                with self._turn:
                    self.late.append(late)

        self._together(work, SENDERS, seed, seconds)
        return len(came) - 2

    def _together(self, work: Any, clients: int, seed: int, seconds: float) -> None:
        def run(place: int) -> None:
            client = Client(self, random.Random(seed * 1000 + place))
            work(client)
            client.close()

        threads = [threading.Thread(target=run, args=[n], daemon=True) for n in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(seconds + 2 * PATIENCE)
            if thread.is_alive():
                self.fail("a client hangs")


class Server:
    """`pliant serve` in a process of its own, on one port through all its lives."""

    def __init__(self, artifact: str, cache_memory: str) -> None:
        self._command = [sys.executable, "-m", "pliant.cli", "serve", artifact, "--json", "--quiet",
                         "--cache-memory", cache_memory, "--max-sequences", str(RUNNING),
                         "--max-waiting", str(WAITING), "--port"]  # fmt: skip
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

    def counters(self) -> dict[str, float]:
        """What it has counted itself."""
        page = httpx.get(f"{self.ready['url']}/metrics", timeout=PATIENCE).raise_for_status().text
        found = (line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#"))
        return {name.split("{")[0]: float(value) for name, value in found}

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


class Watch:
    """What happens while requests come: the kill, and readings of memory."""

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
            self._readings.append((now, self._server.memory))
            if now >= 60 * (len(self.by_minute) + 1):
                self._say()

    @property
    def answered_after_restart(self) -> int:
        """Right answers of the second life."""
        return self._soak.outcomes["answered"] - self._answered_before

    @property
    def warm(self) -> list[int]:
        """Memory from when it should be flat."""
        return [size for now, size in self._readings if now >= 0.3 * self._seconds]

    def growth(self) -> float:
        """Of warm memory, from the median of its first tenth to that of its last."""
        part = max(len(self.warm) // 10, 1)
        return statistics.median(self.warm[-part:]) / statistics.median(self.warm[:part]) - 1

    def _say(self) -> None:
        self.by_minute.append(round(self._readings[-1][1] / 1e6, 1))
        said = f"minute {len(self.by_minute)}: {self.by_minute[-1]} MB", dict(self._soak.outcomes)
        print(*said, self._soak.wrong[:3], file=sys.stderr, flush=True)


def report(server: Server, soak: Soak, watch: Watch, load: dict[str, Any]) -> dict[str, Any]:
    """Everything that was counted, and whether it is as it must be; the server is stopped."""
    # The pool gives texts up and takes them back under load; whatever that did is seen now.
    same, counters, outcomes = (
        soak.idle_answers() == soak.expected,
        server.counters(),
        soak.outcomes,
    )
    judged = 0.7 * load["seconds"] >= LEAST_SECONDS
    late = sorted(soak.late)
    found = {
        **load,
        "sent_late_p99_seconds": round(late[int(0.99 * (len(late) - 1))], 4),
        **{name.replace(" ", "_"): count for name, count in sorted(outcomes.items())},
        "wrong": len(soak.wrong),
        "lost": load["requests"] - outcomes.total() - len(soak.wrong),
        "away_seconds": round(watch.away_seconds, 2),
        "answered_after_restart": watch.answered_after_restart,
        "idle_answers_after": "the same" if same else "others",
        "preemptions": int(counters["vllm:num_preemptions_total"]),
        "evictions": int(counters["pliant:evictions_total"]),
        "memory_mb": [round(size / 1e6, 1) for size in (watch.warm[0], watch.warm[-1])],
        "memory_mb_by_minute": watch.by_minute,
        "memory_growth": round(watch.growth(), 4),
        "memory_judged": judged,
        "exit_code": server.stop(),
    }
    flat = found["memory_growth"] <= MOST_GROWTH or not judged
    well = same and flat and watch.answered_after_restart > 0
    faults = found["wrong"] or found["lost"] or found["exit_code"]
    return {**found, "passed": bool(well and not faults)}


def main() -> int:
    """Serve an artifact in a process of its own and let clients at it; prints what happened."""
    parser = argparse.ArgumentParser(description="A soak test of pliant serve.")
    parser.add_argument("artifact")
    parser.add_argument("--seconds", type=float, default=1800)
    parser.add_argument("--capacity-seconds", type=float, default=10)
    parser.add_argument("--cache-memory", default="1MB")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    server = Server(options.artifact, options.cache_memory)
    soak = Soak(server.ready["url"], server.ready["model"], 24)
    capacity = soak.saturate(options.capacity_seconds, RUNNING + WAITING, options.seed)
    rate = LOAD * capacity
    said = (
        f"capacity {capacity:.1f} requests/s, load {rate:.1f} requests/s for {options.seconds:g} s"
    )
    print(said, file=sys.stderr, flush=True)
    soak.outcomes.clear()
    sent: list[int] = []
    load = threading.Thread(
        target=lambda: sent.append(soak.offer(rate, options.seconds, options.seed + 1))
    )
    watch = Watch(server, soak, options.seconds)
    load.start()
    watch.run(load)
    found = report(server, soak, watch, {
        "seconds": options.seconds,
        "capacity_per_second": round(capacity, 1),
        "load_per_second": round(rate, 1),
        "requests": sent[0],
    })  # fmt: skip
    for what in soak.wrong[:10]:
        print(what, file=sys.stderr)
    print(json.dumps(found))
    return int(not found["passed"])


if __name__ == "__main__":
    raise SystemExit(main())
