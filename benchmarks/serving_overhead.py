"""What does a token of one stream cost in each thread of the server, beside the bare engine?

`python benchmarks/serving_overhead.py [--models 15M] [--tokens 300] [--rounds 3]` prints CPU time
for each token: of the engine's thread and of the event loop of a server in this process, while a
client in another process reads one greedy stream; and of the bare engine writing the same text.
CPU time and not the clock, so that it can be measured while others use the machine; engines have
one thread. Rounds of both come by turns; the least of each is given, with the largest behind it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from pliant.runtime.text_engine import open_artifact
from pliant.serve.safety import Keys
from pliant.serve.server import ServeOptions, listen, make_service, run_server
from serving_models import served_artifact

#: Reads a stream to its end and says nothing.
_CLIENT = """
import socket, sys
raw = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
head = "POST /v1/completions HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n"
head += "Content-Length: %d\\r\\n\\r\\n"
raw.sendall((head % len(sys.argv[2]) + sys.argv[2]).encode())
received = b"".join(iter(lambda: raw.recv(65536), b""))
assert received.startswith(b"HTTP/1.1 200 "), received
"""
_PROMPT = "The fox went home."


def cpu_seconds(thread: threading.Thread) -> float:
    """What a thread has computed so far."""
    assert thread.ident is not None
    return time.clock_gettime(time.pthread_getcpuclockid(thread.ident))


def ask(port: int, tokens: int) -> None:
    """One stream, read by another process."""
    body = {"prompt": _PROMPT, "max_tokens": tokens, "stream": True, "temperature": 0}
    command = [sys.executable, "-c", _CLIENT, str(port), json.dumps(body)]
    subprocess.run(command, check=True)


def measure(path: Path, tokens: int, rounds: int) -> dict[str, Any]:
    """Microseconds for each token of every thread, by rounds."""
    options = ServeOptions(name="model", port=0, threads=1)
    servers: list[Any] = []
    found: dict[str, list[float]] = {"engine thread": [], "event loop": [], "bare engine": []}
    with open_artifact(path) as model, listen(options.host, 0) as bound:
        service = make_service(model, options)
        arguments = (service, Keys([]), options, bound, servers.append)
        loop = threading.Thread(target=run_server, args=arguments)
        loop.start()
        while not servers:
            time.sleep(0.01)
        port, room = bound.getsockname()[1], service.room._thread
        ask(port, tokens)
        with model.engine(threads=1) as engine:
            for _ in range(rounds):
                written, before = service.room.scheduler.counts.written_tokens, time.thread_time()
                count = len(engine.generate(_PROMPT, max_tokens=tokens).tokens)
                found["bare engine"].append((time.thread_time() - before) * 1e6 / count)
                marks = cpu_seconds(room), cpu_seconds(loop)
                ask(port, tokens)
                count = service.room.scheduler.counts.written_tokens - written
                for name, thread, mark in zip(found, (room, loop), marks, strict=False):
                    found[name].append((cpu_seconds(thread) - mark) * 1e6 / count)
        servers[0].should_exit = True
        loop.join()
    return {name: [round(min(took), 1), round(max(took), 1)] for name, took in found.items()}


def main() -> int:
    """Measure and print a JSON line for each model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models", default="15M", help="names, with commas")
    parser.add_argument("--planes", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    for name in options.models.split(","):
        found = measure(served_artifact(name, options.planes), options.tokens, options.rounds)
        print(json.dumps({"model": name, "microseconds_per_token": found}), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
