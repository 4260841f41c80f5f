"""What does serving cost, and what do its users feel?

`python benchmarks/serving.py` writes `benchmarks/results/serving.json` for models of true shapes
with random weights: the speed of one stream beside that of the bare engine; texts of 1, 4, 16 and
64 clients that come at once; and the times between tokens of those who read while long prompts
arrive, with steps paced to 50 ms and with steps as large as they come. `--peer URL` asks any other
running server of the OpenAI API the same, for instance `python -m llama_cpp.server --model x.gguf`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from pliant.load import Arrival, Deadlines, Endpoint, LoadReport, run_load, summarize
from pliant.runtime.text_engine import open_artifact
from random_models import CACHE, CONFIGS, random_artifact

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "serving.json"
CLIENTS = (1, 4, 16, 64)
#: A step that is never reached: only the most tokens of a step bound it.
UNPACED = "60s"


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


def bare_rate(path: Path, words: int, tokens: int, threads: int | None) -> float:
    """Token/s of one text after its first token, by the engine itself."""
    endpoint = Endpoint(url="")
    with open_artifact(path) as model, model.engine(threads=threads) as engine:
        prompt = endpoint.body(words, tokens, 0)["prompt"]
        return engine.generate(prompt, max_tokens=tokens).timings.tokens_per_second


def run(endpoint: Endpoint, arrivals: Sequence[Arrival], number: int) -> LoadReport:
    """One load, summarized; the deadlines are the published defaults."""
    records, late = asyncio.run(run_load(endpoint, arrivals, first_number=number))
    return summarize(records, Deadlines(), most_late_start=late)


def mixed(endpoint: Endpoint, options: argparse.Namespace, number: int) -> LoadReport:
    """Four readers of long answers, while long prompts come; the report is of the readers."""
    readers = [Arrival(0, options.words, options.tokens * 3)] * 4
    prompts = [Arrival(10**8 * (2 + 3 * n), options.long_words, 1) for n in range(options.prompts)]
    records, late = asyncio.run(run_load(endpoint, [*readers, *prompts], first_number=number))
    return summarize(records[: len(readers)], Deadlines(), most_late_start=late)


def line_of(name: str, report: LoadReport) -> dict[str, Any]:
    """The numbers that are kept of a run."""
    first, between = report.first_token, report.between_tokens
    return {
        "case": name,
        "requests": report.requests,
        "failed": report.failed,
        "tokens_per_second": report.tokens_per_second,
        "first_token_p50": first.p50 if first else None,
        "first_token_p99": first.p99 if first else None,
        "between_p50": between.p50 if between else None,
        "between_p99": between.p99 if between else None,
        "stream_rate": 1 / report.per_token.mean if report.per_token else None,
        "fluid_share": report.fluid_share,
    }


def asked(url: str, options: argparse.Namespace, extra: dict[str, Any]) -> list[dict[str, Any]]:
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
    return lines


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """All of one model."""
    path = served_artifact(name, options.planes)
    threads = [] if options.threads is None else ["--threads", str(options.threads)]
    extra = {"ignore_eos": True}
    found: dict[str, Any] = {"model": name, "planes": options.planes}
    found["bare_rate"] = bare_rate(path, options.words, options.tokens, options.threads)
    say({"case": f"{name}: bare engine", "stream_rate": found["bare_rate"]})
    with server(path, *threads) as url:
        found["paced"] = asked(url, options, extra)
    with server(path, *threads, "--step-time", UNPACED) as url:
        report = mixed(Endpoint(url=url, extra=extra), options, 9000)
        found["unpaced"] = [line_of("mixed, steps as large as they come", report)]
        say(found["unpaced"][0])
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
    parser.add_argument("--threads", type=int)
    parser.add_argument("--words", type=int, default=16, help="words of prompts, five bytes each")
    parser.add_argument("--tokens", type=int, default=48, help="tokens of answers")
    parser.add_argument("--long-words", type=int, default=160, help="words of the long prompts")
    parser.add_argument("--prompts", type=int, default=6, help="long prompts that come")
    parser.add_argument("--peer", help="the address of another server, asked the same")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--delete", action="store_true", help="the random models, when done")
    options = parser.parse_args()
    started = time.time()
    results: dict[str, Any] = {"models": [measure(n, options) for n in options.models.split(",")]}
    if options.peer:
        results["peer"] = asked(options.peer, options, {})
    results["seconds"] = round(time.time() - started, 1)
    options.output.parent.mkdir(exist_ok=True)
    options.output.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=1))
    if options.delete:
        shutil.rmtree(CACHE / "serving")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
