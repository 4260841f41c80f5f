"""Clients of all kinds at once against a server that has too little memory for them.

`python tests/serve/soak.py X.pliant --seconds 1800` runs it for long (`make soak`); the suite runs
some seconds of it. Texts of every kind (`soak_cases.py`), of three subnets and three clients, have
room for two or three of eight, so they are pre-empted and computed again all the time. First the
capacity is measured: the requests of this mix that the server finishes each second while as many
clients ask as it has places, for running and for waiting. Then requests come at random times, 1.5
times as many, whatever becomes of those before (an open loop); what the server refuses with 429 has
been answered. After a tenth of the time the server is killed (SIGKILL) and started again; only
requests of that time may be cut off. After three tenths, or a minute and a half after its start, it
is warm: its prefix cache is full, and connections that were left within a request run out as fast
as they come. From then on its memory may grow by 2 %. Every answer, greedy or drawn with a seed,
must be that of an idle server, to the last digit of its scores; nothing may hang; every request
ends with an answer or an error; and when all have ended no text, no cache in use and no connection
is left.

Its last line is a JSON object with everything that was counted; the exit code says whether all of
the above holds, and whether texts were pre-empted at all.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from soak_cases import STORY, Answer, Case, make_cases, stopped
from soak_clients import PATIENCE, Client
from soak_server import KEYS, RUNNING, WAITING, Server, Watch, left_behind, pressure

#: Subnets that are asked beside the whole one; caches of the second are codes of 4 bits.
CUTS = ("d3-w0.5-b3", "b4-k4")
#: Requests that come for each one that it can answer.
LOAD = 1.5
#: Threads that send: as many as can be in the server, and some who read slowly or are refused.
SENDERS = 4 * (RUNNING + WAITING)
#: What warm memory may grow by.
MOST_GROWTH = 0.02
#: Files that a server at rest may have open beyond those of a new one: two more engines, and the
#: connection that asks.
MORE_FILES = 8


class Soak:
    """Requests at a server, what became of them, and what was wrong."""

    def __init__(
        self, url: str, model: str, cuts: Sequence[str] = CUTS, keys: Sequence[str] = ("",)
    ) -> None:
        self.url, self.model, self.keys = url, model, keys
        self.outcomes: Counter[str] = Counter()
        self.wrong: list[str] = []
        #: Seconds by which requests were sent later than they came, and that each took.
        self.late: list[float] = []
        self.took: list[float] = []
        #: How often the server was killed or came back, and whether it is away just now.
        self.kills, self.away = 0, False
        self._turn = threading.Lock()
        client = Client(self, random.Random(0), keys[0])
        found = json.loads(client.post("/tokenize", json.dumps({"prompt": STORY}).encode()).read())
        client.close()
        self.context: int = found["max_model_len"]
        self.cases = list(make_cases(model, cuts, self.context, found["tokens"]))
        self.longest = next(case for case in self.cases if case.name.endswith(", whole context"))
        long = next(case for case in self.cases if case.name.endswith(", long"))
        self.cases.append(stopped(long, self.idle_answer(long)))
        self.expected = self.idle_answers()
        assert self.expected[self.cases[-1].name].reasons == {0: "stop"}

    def count(self, outcome: str, seconds: float) -> None:
        """A request has ended so, after a while."""
        with self._turn:
            self.outcomes[outcome] += 1
            self.took.append(seconds)

    def fail(self, what: str) -> None:
        """A request has ended as none may."""
        with self._turn:
            self.wrong.append(what)

    def idle_answers(self) -> dict[str, Answer]:
        """What each case is answered with while nobody else asks."""
        return {case.name: self.idle_answer(case) for case in self.cases}

    def idle_answer(self, case: Case) -> Answer:
        """The same of one of them."""
        client = Client(self, random.Random(0), self.keys[0])
        answer = client.answer(case)
        client.close()
        return answer

    def judge(self, case: Case, answer: Answer) -> str:
        """The outcome of an answer, which must be that of an idle server."""
        if answer != self.expected[case.name]:
            raise ValueError(f"{case.name}: {answer} is not {self.expected[case.name]}")
        return "answered"

    def judge_beginning(self, case: Case, answer: Answer) -> None:
        """What came of an answer that was cut off must be the beginning of that."""
        if not answer.begins(self.expected[case.name]):
            raise ValueError(f"{case.name}: {answer} does not begin {self.expected[case.name]}")

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
            key = self.keys[place % len(self.keys)]
            client = Client(self, random.Random(seed * 1000 + place), key)
            work(client)
            client.close()

        threads = [threading.Thread(target=run, args=[n], daemon=True) for n in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(seconds + 2 * PATIENCE)
            if thread.is_alive():
                self.fail("a client hangs")


def report(server: Server, soak: Soak, watch: Watch, load: dict[str, Any]) -> dict[str, Any]:
    """Everything that was counted, and whether it is as it must be; the server is stopped."""
    counters, files = server.at_rest(), server.open_files
    # The pool gives texts up and takes them back under load; whatever that did is seen now.
    same = soak.idle_answers() == soak.expected
    found = {
        **load,
        "sent_late_p99_seconds": _p99(soak.late),
        "took_p99_seconds": _p99(soak.took),
        "took_most_seconds": round(max(soak.took), 2),
        **{name.replace(" ", "_"): count for name, count in sorted(soak.outcomes.items())},
        "wrong": len(soak.wrong),
        "lost": load["requests"] - soak.outcomes.total() - len(soak.wrong),
        "away_seconds": round(watch.away_seconds, 2),
        "answered_after_restart": watch.answered_after_restart,
        "idle_answers_after": "the same" if same else "others",
        **pressure(counters),
        **left_behind(counters),
        "open_files": files,
        "memory_mb": [round(size / 1e6, 1) for size in (watch.warm[0], watch.warm[-1])],
        "memory_mb_by_minute": watch.by_minute,
        "memory_growth": round(watch.growth(), 4),
        "memory_judged": watch.is_judged,
        "exit_code": server.stop(),
    }
    found["faults"] = faults(found)
    return {**found, "passed": not found["faults"]}


def faults(found: dict[str, Any]) -> list[str]:
    """What of a report may not be so."""
    few, many = found["open_files_before"], found["open_files"]
    none = ("wrong", "lost", "texts_left", "cache_bytes_left", "exit_code")
    some = ("answered_after_restart", "preemptions", "recomputed_tokens", "evictions")
    grown = found["memory_judged"] and found["memory_growth"] > MOST_GROWTH
    return [
        *(f"{name} is {found[name]}" for name in none if found[name]),
        *(f"{name} is 0" for name in some if not found[name]),
        *(["memory grows"] if grown else []),
        *(["files stay open"] if many > few + MORE_FILES else []),
        *(["idle answers differ afterwards"] if found["idle_answers_after"] != "the same" else []),
    ]


def _p99(seconds: list[float]) -> float:
    return round(sorted(seconds)[int(0.99 * (len(seconds) - 1))], 4)


def main() -> int:
    """Serve an artifact in a process of its own and let clients at it; prints what happened."""
    parser = argparse.ArgumentParser(description="A soak test of pliant serve.")
    parser.add_argument("artifact")
    parser.add_argument("--seconds", type=float, default=1800)
    parser.add_argument("--capacity-seconds", type=float, default=10)
    parser.add_argument("--cache-memory", default="700KB", help="must hold one whole context")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        keys = Path(folder) / "keys.txt"
        with Server(options.artifact, options.cache_memory, keys) as server:
            found, wrong = run(server, options)
    for what in [*wrong[:10], *found["faults"]]:
        print(what, file=sys.stderr)
    print(json.dumps(found))
    return int(not found["passed"])


def run(server: Server, options: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """The whole soak: the report, and what was wrong."""
    files = server.open_files
    soak = Soak(server.ready["url"], server.ready["model"], keys=KEYS)
    capacity = soak.saturate(options.capacity_seconds, RUNNING + WAITING, options.seed)
    if not capacity:
        raise SystemExit(f"Nothing was finished; try more --capacity-seconds. {soak.wrong[:3]}")
    rate = LOAD * capacity
    said = f"capacity {capacity:.1f} requests/s, {rate:.1f} come each second of {options.seconds:g}"
    print(said, soak.wrong[:3], file=sys.stderr, flush=True)
    soak.outcomes.clear()
    soak.took.clear()
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
        "open_files_before": files,
    })  # fmt: skip
    return found, soak.wrong


if __name__ == "__main__":
    raise SystemExit(main())
