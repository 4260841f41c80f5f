"""What does it cost to draw a token from logits?

    python benchmarks/sampling.py [--peer-python PYTHON]

writes `benchmarks/results/sampling.json`: microseconds a token, one thread, by vocabulary and
options; of the engine's sampler, of the NumPy one that the tests have as its reference, and, where
`--peer-python` is an interpreter with llama-cpp-python, of llama.cpp's chain of samplers on the
same logits. All take turns within each round. Logits are "sure" like those of a trained model (30
tokens stand out of a normal distribution of deviation 3) or "unsure" (none does). Less than a
minute.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.runtime import numpy_sampler  # noqa: E402

from peer_process import PeerProcess  # noqa: E402
from pliant.measurement import Measurement  # noqa: E402
from pliant.recipes.bench import machine_text  # noqa: E402
from pliant.runtime.kernel_path import kernel_path  # noqa: E402
from pliant.runtime.sampling import Sampler, SamplingOptions, log_probabilities  # noqa: E402
from sampling_cases import CASES, VOCABULARIES, rows, seen_tokens  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "sampling.json"
#: What the likelihood of tokens outside the nucleus makes a difference for.
UNSURE = ("temperature 1", "top_p 0.95")
SCORES = "log-probabilities of 20 tokens"
#: Draws of one engine in one round.
DRAWS = {"pliant": 24, "NumPy": 4, "llama.cpp": 4}

Draw = Callable[[Any], Any]


def ours(vocabulary: int, case: str) -> Draw:
    """A function of logits that draws as the engine does."""
    if case == SCORES:
        return lambda logits: log_probabilities(logits, 0, 20)
    options = dict(CASES[case])
    seen = seen_tokens(vocabulary, options.pop("seen", 0))
    words = mask(vocabulary).view(np.uint32) if options.pop("masked", False) else None
    sampler = Sampler(SamplingOptions(**options), seen)
    return lambda logits: sampler.sample(logits, words)


def in_numpy(vocabulary: int, case: str) -> Draw:
    """The same in NumPy."""
    if case == SCORES:
        return lambda logits: numpy_sampler.log_probabilities(logits, 0, 20)
    options = dict(CASES[case])
    seen = np.unique(seen_tokens(vocabulary, options.pop("seen", 0))).tolist()
    bits = mask(vocabulary) if options.pop("masked", False) else None
    sampling, random = SamplingOptions(**options), np.random.Philox(key=0)

    def draw(logits: Any) -> int:
        if seen or bits is not None:
            allowed = None
            if bits is not None:
                allowed = np.unpackbits(bits, bitorder="little")[:vocabulary].astype(bool)
            penalty = sampling.repetition_penalty
            logits = numpy_sampler.adjusted(
                logits, allowed_V=allowed, seen=seen, repetition_penalty=penalty
            )
        return numpy_sampler.draw(logits, sampling, (int(random.random_raw()) >> 11) * 2.0**-53)

    return draw


def mask(vocabulary: int) -> Any:
    """Bits of which about half are set."""
    size = (vocabulary + 31) // 32 * 4
    return np.random.default_rng(vocabulary).integers(0, 256, size, np.uint8)


def seconds_of(draw: Draw, logits: list[Any], count: int) -> list[float]:
    """Seconds of each of some draws."""
    found = []
    for i in range(count):
        start = time.perf_counter()
        draw(logits[i % len(logits)])
        found.append(time.perf_counter() - start)
    return found


def combinations() -> Iterator[tuple[str, int, str, str]]:
    """Name and size of a vocabulary, kind of logits, case."""
    for name, size in VOCABULARIES.items():
        for case in (*CASES, SCORES):
            for kind in ("sure", "unsure") if case in UNSURE else ("sure",):
                yield name, size, kind, case


def measure(rounds: int, peer: PeerProcess | None) -> list[dict[str, Any]]:
    """A line for each combination, every engine's microseconds in it."""
    lines: list[dict[str, Any]] = []
    for name, size, kind, case in combinations():
        logits = rows(size, kind)
        draws = {"pliant": ours(size, case), "NumPy": in_numpy(size, case)}
        asks_peer = peer is not None and case != SCORES and "masked" not in CASES[case]
        found: dict[str, list[float]] = {engine: [] for engine in draws}
        for turn in range(rounds + 1):
            times = {
                engine: seconds_of(draw, logits, DRAWS[engine]) for engine, draw in draws.items()
            }
            if asks_peer and peer is not None:
                asked = {"vocabulary": size, "kind": kind, "case": case}
                answer = peer.ask("draws", **asked, count=DRAWS["llama.cpp"])
                times["llama.cpp"] = answer["seconds"]
            for engine, seconds in times.items() if turn else ():  # the first warms up
                found.setdefault(engine, []).append(1e6 * float(np.median(seconds)))
        taken = {engine: Measurement.of(seconds, "µs") for engine, seconds in found.items()}
        lines.append({"vocabulary": size, "of": name, "logits": kind, "case": case,
                      "microseconds": taken})  # fmt: skip
        shown = ", ".join(f"{engine} {took}" for engine, took in taken.items())
        print(f"{size:7} {kind:6} {case}: {shown}", flush=True)
    return lines


def table(lines: list[dict[str, Any]], caption: str) -> dict[str, Any]:
    """A row for each combination: median and spread over the rounds."""
    engines = ("pliant", "NumPy", "llama.cpp")
    rows_ = [
        [
            f"{line['vocabulary']:,}", line["case"], line["logits"],
            *(_cell(line["microseconds"].get(engine)) for engine in engines),
        ]
        for line in lines
    ]  # fmt: skip
    columns = ["vocabulary", "options", "logits", *(f"{engine}, µs" for engine in engines)]
    return {"columns": columns, "align": "rllrrr", "rows": rows_, "caption": caption}


def _cell(took: Measurement | None) -> str:
    if took is None:
        return "-"
    return f"{took.median:,.0f} [{took.low:,.0f}, {took.high:,.0f}]"


def main() -> int:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--peer-python", help="an interpreter with llama-cpp-python")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    with ExitStack() as stack:
        peer, version = None, None
        if options.peer_python:
            script = Path(__file__).with_name("peer_llama_sampler.py")
            hint = "--peer-python needs llama-cpp-python and gguf."
            peer = stack.enter_context(PeerProcess(options.peer_python, script, hint))
            version = peer.ask("info")["llama-cpp-python"]
        lines = measure(options.rounds, peer)
    caption = (
        f"Microseconds a token, one thread: median of {options.rounds} rounds, the least and the "
        f"most behind it; kernels {kernel_path()}; {machine_text()}, load "
        f"{os.getloadavg()[0]:.1f}."
    )
    if version:
        caption += f" llama-cpp-python {version}."
    result = {
        "machine": machine_text(), "load_average": round(os.getloadavg()[0], 2),
        "kernels": kernel_path(), "peer": version, "table": table(lines, caption), "lines": lines,
    }  # fmt: skip
    options.output.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
