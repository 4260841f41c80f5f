"""What does serving cost, and what do its users feel, beside another server of the same weights?

`python benchmarks/serving.py [--peer-python PYTHON]` writes `benchmarks/results/serving.json` for
the demo model and models of true shapes with random weights: the speed of one stream beside that of
the bare engine, taken by turns, of greedy text and of drawn text, which is what clients of the API
get unless they say otherwise; texts of 1, 4, 16 and 64 clients that come at once; the times between
tokens of those who read while long prompts arrive; and the capacity, the largest rate of requests
that come at random and still meet their deadlines. With `--peer-python`, an interpreter that has
`llama-cpp-python[server]`, that server is asked the same, of the cut that we serve, written as GGUF
by `pliant export`; what takes it too long is left out (`serving_models.py`) unless
`--peer-everything` is given. `python benchmarks/serving.py --table` prints the results as Markdown.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from pliant.artifact import Artifact
from pliant.load import (
    Arrival,
    Deadlines,
    Endpoint,
    LoadReport,
    draw_arrivals,
    find_capacity,
    run_load,
    summarize,
)
from pliant.runtime.text_engine import TextEngine, open_artifact
from random_models import CACHE, ROOT
from serving_models import CLIENTS, ServedModel, fitting_words, served_artifact, served_model
from serving_table import render, table

RESULTS = ROOT / "benchmarks" / "results" / "serving.json"
#: How the tokens of one stream are chosen, here and in the bare engine.
CHOSEN = {"greedy": {"temperature": 0.0}, "drawn": {"temperature": 1.0, "top_p": 0.95}}
#: A step that is never reached: only the most tokens of a step bound it.
UNPACED = "60s"
#: What users wait for: a first token within a second, then 20 a second.
DEADLINES = Deadlines(first=1_000_000_000, between=50_000_000)
#: Requests of one rate: above them the generator itself would be what is measured.
_MOST_REQUESTS = 1_000
#: How many times as long as others a low rate is tried, unless that makes fewer requests than this.
_PATIENCE, _LEAST_REQUESTS = 4, 4
#: Seconds that the other server may take to open its model.
_START_SECONDS = 120


@contextmanager
def server(path: Path, *flags: str) -> Iterator[str]:
    """The address of `pliant serve` in a process of its own."""
    command = [sys.executable, "-m", "pliant.cli", "serve", str(path), "--port", "0", "--json",
               "--quiet", "--max-sequences", str(max(CLIENTS)), *flags]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield str(json.loads(process.stdout.readline())["url"])
        finally:
            process.terminate()


@contextmanager
def peer_server(python: str, path: Path, threads: int, place: Path) -> Iterator[str]:
    """The address of llama-cpp-python's server of the same weights."""
    gguf = place / f"{path.stem}-{_content_key(path)}.gguf"
    if not gguf.exists():
        place.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pliant.cli", "export", str(path), "--to", "gguf",
                   "--output", str(gguf), "--no-verify", "--quiet"]  # fmt: skip
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    # A request that comes must not end the one that runs, which is what it does unless told.
    command = [python, "-m", "llama_cpp.server", "--model", str(gguf), "--port", str(port),
               "--n_ctx", "2048", "--n_threads", str(threads), "--n_threads_batch", str(threads),
               "--interrupt_requests", "False", "--verbose", "False"]  # fmt: skip
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, **quiet) as process:  # type: ignore[call-overload]
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_for(url, process)
            yield url
        finally:
            process.terminate()


def _content_key(artifact: Path) -> str:
    """Twelve digits that change with an artifact: its manifest holds the hashes of all files."""
    return hashlib.sha256((artifact / "pliant.json").read_bytes()).hexdigest()[:12]


def _wait_for(url: str, process: Any) -> None:
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            raise SystemExit("llama_cpp.server does not start; try its command by hand.")
        try:
            with urllib.request.urlopen(f"{url}/v1/models", timeout=5):
                return
        except OSError:
            time.sleep(0.1)
    raise SystemExit("llama_cpp.server does not answer.")


def run(endpoint: Endpoint, arrivals: Sequence[Arrival], number: int) -> LoadReport:
    """One load, summarized."""
    records, late = asyncio.run(run_load(endpoint, arrivals, first_number=number))
    return summarize(records, DEADLINES, most_late_start=late)


def mixed(endpoint: Endpoint, options: argparse.Namespace, number: int) -> LoadReport:
    """Four readers of long answers, while long prompts come; the report is of the readers."""
    readers = [Arrival(0, options.words, options.tokens * 3)] * 4
    prompts = [Arrival(10**8 * (2 + 3 * n), options.long_words, 1) for n in range(options.prompts)]
    records, late = asyncio.run(run_load(endpoint, [*readers, *prompts], first_number=number))
    return summarize(records[: len(readers)], DEADLINES, most_late_start=late)


def line_of(name: str, report: LoadReport) -> dict[str, Any]:
    """The numbers that are kept of a run."""
    first, between, mean = report.first_token, report.between_tokens, report.per_token
    return {
        "case": name,
        "requests": report.requests,
        "failed": report.failed,
        "tokens_per_second": report.tokens_per_second,
        "first_token_p50": first.p50 if first else None,
        "first_token_p99": first.p99 if first else None,
        "between_p50": between.p50 if between else None,
        "between_p99": between.p99 if between else None,
        "stream_rate": 1 / mean.mean if mean and mean.mean else None,
        "fluidity": statistics.fmean(report.fluidity),
        "fluid_share": report.fluid_share,
    }


def one_stream(path: Path, url: str, options: argparse.Namespace) -> dict[str, Any]:
    """Token/s of the bare engine and of the server, by turns, and their ratios; for greedy text,
    which the engine chooses in both, and for drawn text, which is the same in both.

    A text ends where the model says so. Only a quiet machine tells: others take from the two in
    different measure. No turns where the model is so small that texts come in one piece.
    """
    pairs: dict[str, list[tuple[float, float]]] = {kind: [] for kind in CHOSEN}
    with open_artifact(path) as model, model.engine(threads=options.threads) as engine:
        for kind, chosen in CHOSEN.items():
            both_rates(engine, url, options, 400, chosen)
            pairs[kind] = []
        for turn in range(options.turns):
            for kind, chosen in CHOSEN.items():
                pair = both_rates(engine, url, options, turn, chosen)
                # A text that ended at once, or came in one piece, has no rate.
                pairs[kind] += [pair] if all(pair) else []
    found = {kind: one_stream_line(of_one) for kind, of_one in pairs.items()}
    for kind, line in found.items():
        medians = {name: value["median"] for name, value in line.items() if name != "turns"}
        say({"case": f"one stream, {kind}", **medians})
    return found


def both_rates(
    engine: TextEngine, url: str, options: argparse.Namespace, turn: int, chosen: dict[str, float]
) -> tuple[float, float]:
    """Token/s of one text, of the bare engine and of the server; 0 where it has no rate."""
    drawn: dict[str, Any] = {**chosen, "seed": turn}
    endpoint, arrival = (
        Endpoint(url=url, extra=drawn),
        Arrival(0, options.words, 4 * options.tokens),
    )
    prompt = endpoint.body(arrival.words, arrival.max_tokens, turn)["prompt"]
    written = engine.generate(prompt, max_tokens=arrival.max_tokens, **drawn)
    sample = run(endpoint, [arrival], turn).per_token
    return written.timings.tokens_per_second, 1 / sample.mean if sample and sample.mean else 0.0


def one_stream_line(pairs: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Medians and quartiles of rates and of their ratios."""
    if not pairs:
        return {"turns": 0}
    return {
        "turns": len(pairs),
        "bare_rate": spread([bare for bare, _ in pairs]),
        "served_rate": spread([served for _, served in pairs]),
        "ratio": spread([served / bare for bare, served in pairs]),
    }


def spread(sample: Sequence[float]) -> dict[str, float]:
    """Median and quartiles, both of them values of the sample."""
    ordered = sorted(sample)
    quarter = len(ordered) // 4
    return {
        "low": ordered[quarter],
        "median": statistics.median(ordered),
        "high": ordered[-1 - quarter],
    }


def requests_at(rate: float, least: int, seconds: float) -> int:
    """How many requests try a rate: `least` or those of some seconds, not many times as long.

    A handful at a high rate is one burst, which every server takes in and works off; a dozen at
    a rate of one in ten seconds take two minutes.
    """
    wanted = max(least, min(round(rate * seconds), _MOST_REQUESTS))
    return min(wanted, max(round(rate * seconds * _PATIENCE), _LEAST_REQUESTS))


def capacity(endpoint: Endpoint, options: argparse.Namespace, guess: float) -> dict[str, Any]:
    """Requests/s that come at random and meet their deadlines (Metron's definition)."""
    number = 20_000

    def is_feasible(rate: float) -> bool:
        nonlocal number
        count = requests_at(rate, options.requests, options.seconds)
        number += count
        arrivals = draw_arrivals("poisson", rate, count, options.words, options.tokens, seed=1)
        report = run(endpoint, arrivals, number)
        say(line_of(f"{rate:.3g} requests/s", report))
        return report.is_feasible and not report.failed

    found = {"case": "capacity", "requests_per_second": find_capacity(is_feasible, guess, 0.15)}
    say(found)
    return found


def asked(
    url: str,
    options: argparse.Namespace,
    extra: dict[str, Any],
    clients: Sequence[int],
    with_capacity: bool,
) -> dict[str, Any]:
    """Every case of one server."""
    endpoint, lines = Endpoint(url=url, extra=extra), []
    number = 0
    for count in clients:
        arrivals = [Arrival(0, options.words, options.tokens)] * count
        run(endpoint, arrivals[:1], number + 500)
        lines.append(line_of(f"{count} clients", run(endpoint, arrivals, number)))
        number += 1000
        say(lines[-1])
    lines.append(line_of("mixed", mixed(endpoint, options, number)))
    say(lines[-1])
    guess = lines[0]["tokens_per_second"] / options.tokens
    found: dict[str, Any] = {"lines": lines}
    if options.requests and with_capacity:
        found["capacity"] = capacity(endpoint, options, guess)
    return found


def measure(model: ServedModel, options: argparse.Namespace) -> dict[str, Any]:
    """All of one model."""
    started = time.monotonic()
    path = served_artifact(model.name, options.planes)
    planes = Artifact.open(path).num_planes
    long_words = fitting_words(path, options.long_words, max_tokens=1)
    options = argparse.Namespace(**{**vars(options), "long_words": long_words})
    flags = ["--threads", str(options.threads)]
    found: dict[str, Any] = {
        "model": model.name, "planes": planes, "threads": options.threads, "long_words": long_words,
    }  # fmt: skip
    say({"case": f"{model.name}, {planes} planes, long prompts of {long_words} words"})
    with server(path, *flags) as url:
        found["one_stream"] = one_stream(path, url, options)
        found["ours"] = asked(url, options, {"ignore_eos": True}, model.clients, True)
    with server(path, *flags, "--step-time", UNPACED) as url:
        report = mixed(Endpoint(url=url, extra={"ignore_eos": True}), options, 9000)
        found["unpaced"] = line_of("mixed, steps as large as they come", report)
        say(found["unpaced"])
    if options.peer_python:
        with peer_server(options.peer_python, path, options.threads, CACHE / "serving") as url:
            say({"case": "llama_cpp.server"})
            found["peer"] = asked(url, options, {}, model.peer_clients, model.peer_capacity)
            found["left_out"] = model.reason
    found["seconds"] = round(time.monotonic() - started, 1)
    return found


def say(line: dict[str, Any]) -> None:
    """A line on stderr."""
    shown = {key: f"{value:.4g}" for key, value in line.items() if isinstance(value, float)}
    print(line["case"], *(f"{key} {value}" for key, value in shown.items()), file=sys.stderr)


def main() -> int:
    """Measure, then write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models", default="tale,15M,Qwen2.5-0.5B", help="names, with commas")
    parser.add_argument("--planes", type=int, default=4, help="of random models")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--words", type=int, default=6, help="words of prompts, five bytes each")
    parser.add_argument("--tokens", type=int, default=24, help="tokens of answers")
    parser.add_argument("--turns", type=int, default=9, help="of the bare engine and the server")
    parser.add_argument("--requests", type=int, default=12, help="at least, of a rate tried for "
                        "capacity; 0 leaves it out")  # fmt: skip
    parser.add_argument("--seconds", type=float, default=5, help="that a rate is tried for")
    parser.add_argument("--long-words", type=int, default=100, help="words of the long prompts, "
                        "or as many as the context holds")  # fmt: skip
    parser.add_argument("--prompts", type=int, default=6, help="long prompts that come")
    parser.add_argument("--peer-python", help="an interpreter with llama-cpp-python[server]")
    parser.add_argument("--peer-everything", action="store_true", help="of every model")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="print what was measured before")
    parser.add_argument("--delete", action="store_true", help="the random models, when done")
    options = parser.parse_args()
    if options.table:
        print(render(msgspec.json.decode(options.output.read_bytes())))
        return 0
    started = time.time()
    models = [served_model(name, options.peer_everything) for name in options.models.split(",")]
    results: dict[str, Any] = {"models": [measure(model, options) for model in models]}
    results["seconds"] = round(time.time() - started, 1)
    results["table"] = table(results)
    options.output.parent.mkdir(exist_ok=True)
    options.output.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=1))
    print(render(results))
    if options.delete:
        shutil.rmtree(CACHE / "serving")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
