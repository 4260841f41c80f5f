"""Clients of all kinds at once against a server that has too little memory for them.

`python tests/serve/soak.py X.pliant --seconds 1800` runs it for long (`make soak`); the suite runs
some seconds of it. Greedy answers must be those of an idle server, memory must not grow, nothing
may hang, and every request ends with an answer or an error. The server is killed (SIGKILL) and
started again while clients ask; only requests of that time may be cut off.
"""

from __future__ import annotations

import argparse
import json
import random
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from typing import Any

import httpx
import psutil

PATIENCE = 60
PROMPTS = [f"{'The fox went home. ' * (1 + place % 4)}{place}" for place in range(12)]


class Soak:
    """Clients that ask, stream, leave, send nonsense, and check what they get."""

    def __init__(self, url: str, model: str, max_tokens: int) -> None:
        self.url, self.model, self.max_tokens = url, model, max_tokens
        self.outcomes: Counter[str] = Counter()
        self.wrong: list[str] = []
        #: How often the server was killed, and whether it is away just now.
        self.kills, self.away = 0, False
        with httpx.Client(base_url=url, timeout=PATIENCE) as http:
            self.expected = [self._text(http, prompt) for prompt in PROMPTS]

    def run(self, seconds: float, clients: int, seed: int = 0) -> None:
        """Let `clients` threads do what they do for so long."""
        end = time.monotonic() + seconds
        threads = [
            threading.Thread(target=self._client, args=(end, random.Random(seed * 1000 + place)))
            for place in range(clients)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(seconds + 2 * PATIENCE)
            assert not thread.is_alive(), "a client hangs"

    def _client(self, end: float, draw: random.Random) -> None:
        kinds = [self._ask, self._ask, self._stream, self._read_slowly, self._leave,
                 self._nonsense, self._hang_up]  # fmt: skip
        with httpx.Client(base_url=self.url, timeout=PATIENCE) as http:
            while time.monotonic() < end:
                kind, kills, away = draw.choice(kinds), self.kills, self.away
                try:
                    kind(http, draw)
                except Exception as error:
                    cut_off = isinstance(error, httpx.TransportError | OSError)
                    if cut_off and (away or kills != self.kills):
                        self.outcomes["cut off"] += 1
                        time.sleep(0.05)
                        continue
                    self.wrong.append(f"{kind.__name__}: {type(error).__name__}: {error}")

    def _body(self, prompt: str, **more: Any) -> dict[str, Any]:
        return {"model": self.model, "prompt": prompt, "max_tokens": self.max_tokens,
                "temperature": 0, "ignore_eos": True, **more}  # fmt: skip

    def _text(self, http: httpx.Client, prompt: str) -> str:
        answer = http.post("/v1/completions", json=self._body(prompt))
        answer.raise_for_status()
        return str(answer.json()["choices"][0]["text"])

    def _judge(self, place: int, text: str) -> None:
        self.outcomes["answered"] += 1
        if text != self.expected[place]:
            self.wrong.append(f"prompt {place}: {text!r} is not {self.expected[place]!r}")

    def _ask(self, http: httpx.Client, draw: random.Random) -> None:
        place = draw.randrange(len(PROMPTS))
        answer = http.post("/v1/completions", json=self._body(PROMPTS[place]))
        if answer.status_code == 429:
            assert int(answer.headers["retry-after"]) >= 1
            self.outcomes["refused"] += 1
            return
        answer.raise_for_status()
        self._judge(place, answer.json()["choices"][0]["text"])

    def _read_slowly(self, http: httpx.Client, draw: random.Random) -> None:
        self._stream(http, draw, pause=0.02)

    def _stream(self, http: httpx.Client, draw: random.Random, pause: float = 0) -> None:
        place, text, done = draw.randrange(len(PROMPTS)), "", False
        body = self._body(PROMPTS[place], stream=True)
        with http.stream("POST", "/v1/completions", json=body) as response:
            if response.status_code == 429:
                self.outcomes["refused"] += 1
                return
            for line in response.iter_lines():
                time.sleep(pause)
                done = line == "data: [DONE]"
                if line.startswith("data: {"):
                    text += json.loads(line.removeprefix("data: "))["choices"][0]["text"]
                if done:
                    break
        assert done, "a stream ended without its mark"
        self._judge(place, text)

    def _leave(self, http: httpx.Client, draw: random.Random) -> None:
        body = self._body(draw.choice(PROMPTS), stream=True)
        with http.stream("POST", "/v1/completions", json=body) as response:
            for count, _ in enumerate(response.iter_lines()):
                if count > draw.randrange(12):
                    break
        self.outcomes["left"] += 1

    def _nonsense(self, http: httpx.Client, draw: random.Random) -> None:
        content = bytes(draw.randrange(256) for _ in range(draw.randrange(60)))
        answer = http.post("/v1/completions", content=content)
        assert 400 <= answer.status_code < 500
        self.outcomes["malformed"] += 1

    def _hang_up(self, http: httpx.Client, draw: random.Random) -> None:
        """A connection that is closed within a request."""
        host, port = self.url.removeprefix("http://").split(":")
        text = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 90\r\n\r\n{"
        with socket.create_connection((host, int(port)), timeout=PATIENCE) as raw:
            raw.sendall(text[: draw.randrange(1, len(text))])
        self.outcomes["hung up"] += 1


class Server:
    """`pliant serve` in a process of its own, on one port through all its lives."""

    def __init__(self, artifact: str, cache_memory: str) -> None:
        self._command = [sys.executable, "-m", "pliant.cli", "serve", artifact, "--json", "--quiet",
                         "--cache-memory", cache_memory, "--max-sequences", "8",
                         "--max-waiting", "16", "--port"]  # fmt: skip
        self.ready = self._start("0")

    def _start(self, port: str) -> dict[str, Any]:
        command = [*self._command, port]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        ready: dict[str, Any] = json.loads(self._process.stdout.readline())
        # It listens already; what asks now is answered when it has begun.
        httpx.get(f"{ready['url']}/health", timeout=PATIENCE).raise_for_status()
        return ready

    @property
    def memory(self) -> int:
        """Bytes of it that are resident."""
        return int(psutil.Process(self._process.pid).memory_info().rss)

    def kill_and_restart(self, soak: Soak) -> None:
        """An end without a word, and a new beginning at the same address."""
        soak.away, soak.kills = True, soak.kills + 1
        self._process.kill()
        self._process.wait(PATIENCE)
        self._start(self.ready["url"].rsplit(":", 1)[1])
        # Those that began while it was away may end later than this.
        soak.away, soak.kills = False, soak.kills + 1

    def stop(self) -> int:
        """Its exit code, when it was asked to end."""
        self._process.terminate()
        return self._process.wait(PATIENCE)


def main() -> int:
    """Serve an artifact in a process of its own and let clients at it; prints what happened."""
    parser = argparse.ArgumentParser(description="A soak test of pliant serve.")
    parser.add_argument("artifact")
    parser.add_argument("--seconds", type=float, default=1800)
    parser.add_argument("--clients", type=int, default=24)
    parser.add_argument("--cache-memory", default="1MB")
    parser.add_argument("--parts", type=int, default=10, help="of the time, after each of which "
                        "memory is read; the server is killed within the second")  # fmt: skip
    options = parser.parse_args()
    server = Server(options.artifact, options.cache_memory)
    soak, memory = Soak(server.ready["url"], server.ready["model"], 24), []
    for part in range(options.parts):
        seconds = options.seconds / options.parts
        if part == 1:
            kill = threading.Timer(seconds / 3, server.kill_and_restart, [soak])
            kill.start()
        soak.run(seconds, options.clients, seed=part)
        if part == 1:
            kill.join()
        memory.append(server.memory)
        print(part, dict(soak.outcomes), f"{memory[-1] / 1e6:.1f} MB", soak.wrong[:3], flush=True)
    code = server.stop()
    # The part of the restart and the one behind it warm up; from there on memory is flat.
    settled = memory[3:] or memory[-1:]
    growth = settled[-1] / settled[0] - 1
    killed = soak.outcomes["cut off"]
    print(f"memory grew by {growth:.1%}, exit code {code}, {killed} cut off by the kill, "
          f"{len(soak.wrong)} wrong")  # fmt: skip
    return int(bool(soak.wrong) or growth > 0.02 or code != 0)


if __name__ == "__main__":
    raise SystemExit(main())
