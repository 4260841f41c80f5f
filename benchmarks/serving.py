"""What does serving cost, and what do its users feel, beside another server of the same weights?

`python benchmarks/serving.py [--peer-python PYTHON]` writes `benchmarks/results/serving.json` for
models of true shapes with random weights: the speed of one stream beside that of the bare engine,
taken by turns; texts of 1, 4, 16 and 64 clients that come at once; the times between tokens of
those who read while long prompts arrive; and the capacity, the largest rate of requests that come
at random and still meet their deadlines. With `--peer-python`, an interpreter that has
`llama-cpp-python[server]`, that server is asked the same, of the cut that we serve, written as GGUF
by `pliant export`. `python benchmarks/serving.py --table` prints the results as Markdown.
"""

from __future__ import annotations

import argparse
import asyncio
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
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

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
from pliant.runtime.text_engine import open_artifact
from random_models import CACHE, CONFIGS, random_artifact
from serving_table import render, table

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "serving.json"
CLIENTS = (1, 4, 16, 64)
#: A step that is never reached: only the most tokens of a step bound it.
UNPACED = "60s"
#: What users wait for: a first token within a second, then 20 a second.
DEADLINES = Deadlines(first=1_000_000_000, between=50_000_000)
#: Requests of one rate: above them the generator itself would be what is measured.
_MOST_REQUESTS = 1_000
#: Seconds that the other server may take to open its model.
_START_SECONDS = 120


def served_artifact(name: str, planes: int) -> Path:
    """A random model with a tokenizer of one token a byte, and a word for every other id."""
    artifact = random_artifact(name, CONFIGS[name], planes, CACHE / "serving")
    path = artifact.path / "tokenizer.json"
    if not path.exists():
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        size = artifact.spec.vocab_size
        words = [*alphabet, *(f"Ġw{place}" for place in range(len(alphabet), size))]
        vocabulary = {word: place for place, word in enumerate(words[:size])}
        backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        backend.save(str(path))
    return artifact.path


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
    gguf = place / f"{path.stem}.gguf"
    if not gguf.exists():
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
    """Token/s of the bare engine and of the server, by turns, and the median of their ratios.

    Greedy both, so the engine chooses the tokens in both; a text ends where the model says so.
    Only a quiet machine tells: others take from the two in different measure. No turns where the
    model is so small that texts come in one piece.
    """
    endpoint, bare, served = Endpoint(url=url), [], []
    words, tokens = options.words, 4 * options.tokens
    run(endpoint, [Arrival(0, words, tokens)], 400)
    with open_artifact(path) as model, model.engine(threads=options.threads) as engine:
        for turn in range(options.turns):
            prompt = endpoint.body(words, tokens, turn)["prompt"]
            rate = engine.generate(prompt, max_tokens=tokens).timings.tokens_per_second
            sample = run(endpoint, [Arrival(0, words, tokens)], turn).per_token
            # A text that ended at once, or came in one piece, has no rate.
            if sample is not None and sample.mean and rate:
                bare.append(rate)
                served.append(1 / sample.mean)
    if not bare:
        return {"turns": 0}
    ratios = sorted(one / other for one, other in zip(served, bare, strict=True))
    found = {
        "bare_rate": statistics.median(bare),
        "served_rate": statistics.median(served),
        "ratio": statistics.median(ratios),
        "ratio_low": ratios[len(ratios) // 4],
        "ratio_high": ratios[-1 - len(ratios) // 4],
        "turns": len(ratios),
    }
    say({"case": "one stream", **found})
    return found


def capacity(endpoint: Endpoint, options: argparse.Namespace, guess: float) -> dict[str, Any]:
    """Requests/s that come at random and meet their deadlines (Metron's definition)."""
    number = 20_000

    def is_feasible(rate: float) -> bool:
        nonlocal number
        # A handful at any rate is one burst, which every server takes in and works off.
        count = max(options.requests, min(round(rate * options.seconds), _MOST_REQUESTS))
        number += count
        arrivals = draw_arrivals("poisson", rate, count, options.words, options.tokens, seed=1)
        report = run(endpoint, arrivals, number)
        say(line_of(f"{rate:.3g} requests/s", report))
        return report.is_feasible and not report.failed

    found = {"case": "capacity", "requests_per_second": find_capacity(is_feasible, guess, 0.15)}
    say(found)
    return found


def asked(url: str, options: argparse.Namespace, extra: dict[str, Any]) -> dict[str, Any]:
    """Every case of one server."""
    endpoint, lines = Endpoint(url=url, extra=extra), []
    number = 0
    for clients in CLIENTS:
        arrivals = [Arrival(0, options.words, options.tokens)] * clients
        run(endpoint, arrivals[:1], number + 500)
        lines.append(line_of(f"{clients} clients", run(endpoint, arrivals, number)))
        number += 1000
        say(lines[-1])
    lines.append(line_of("mixed", mixed(endpoint, options, number)))
    say(lines[-1])
    guess = lines[0]["tokens_per_second"] / options.tokens
    found: dict[str, Any] = {"lines": lines}
    if options.requests:
        found["capacity"] = capacity(endpoint, options, guess)
    return found


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """All of one model."""
    path = served_artifact(name, options.planes)
    flags = ["--threads", str(options.threads)]
    found: dict[str, Any] = {"model": name, "planes": options.planes, "threads": options.threads}
    say({"case": f"{name}, {options.planes} planes"})
    with server(path, *flags) as url:
        found["one_stream"] = one_stream(path, url, options)
        found["ours"] = asked(url, options, {"ignore_eos": True})
    with server(path, *flags, "--step-time", UNPACED) as url:
        report = mixed(Endpoint(url=url, extra={"ignore_eos": True}), options, 9000)
        found["unpaced"] = line_of("mixed, steps as large as they come", report)
        say(found["unpaced"])
    if options.peer_python:
        with peer_server(options.peer_python, path, options.threads, CACHE / "serving") as url:
            say({"case": "llama_cpp.server"})
            found["peer"] = asked(url, options, {})
    return found


def say(line: dict[str, Any]) -> None:
    """A line on stderr."""
    shown = {key: f"{value:.4g}" for key, value in line.items() if isinstance(value, float)}
    print(line["case"], *(f"{key} {value}" for key, value in shown.items()), file=sys.stderr)


def main() -> int:
    """Measure, then write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models", default="15M,Qwen2.5-0.5B", help="names, with commas")
    parser.add_argument("--planes", type=int, default=4)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--words", type=int, default=6, help="words of prompts, five bytes each")
    parser.add_argument("--tokens", type=int, default=24, help="tokens of answers")
    parser.add_argument("--turns", type=int, default=9, help="of the bare engine and the server")
    parser.add_argument("--requests", type=int, default=12, help="at least, of a rate tried for "
                        "capacity; 0 leaves it out")  # fmt: skip
    parser.add_argument("--seconds", type=float, default=5, help="that a rate is tried for")
    parser.add_argument("--long-words", type=int, default=100, help="words of the long prompts")
    parser.add_argument("--prompts", type=int, default=6, help="long prompts that come")
    parser.add_argument("--peer-python", help="an interpreter with llama-cpp-python[server]")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="print what was measured before")
    parser.add_argument("--delete", action="store_true", help="the random models, when done")
    options = parser.parse_args()
    if options.table:
        print(render(msgspec.json.decode(options.output.read_bytes())))
        return 0
    started = time.time()
    results: dict[str, Any] = {"models": [measure(n, options) for n in options.models.split(",")]}
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
