"""How fast is the engine beside llama.cpp and torch, on models of true shapes?

`python benchmarks/vs_peers.py --peer-python PYTHON` writes `benchmarks/results/vs_peers.json`.
PYTHON is an interpreter with `llama-cpp-python` and `gguf`, for instance of

    python3 -m venv peers && peers/bin/pip install llama-cpp-python gguf

torch and transformers are those of this interpreter. All runners of a model take turns within one
run, in an order that turns round, with the read bandwidth and the peak of byte products probed
between the rounds; ratios are medians of the ratios within the rounds. Weights are random
(`random_models.py`): speed does not depend on them. llama.cpp gets the type of each tensor that its
own quantizer would choose.

Every model's results are stored when it is done; `--resume` goes on after an interruption. All
models take about 15 minutes, `--quick` 4. To look at a long context:

    vs_peers.py --models Qwen2.5-0.5B --planes 4 --types Q4_0 --torch none \\
        --prompt 4096 --repeats 1 --output benchmarks/results/vs_peers_4096.json
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from peer_process import PeerError, PeerProcess
from pliant.evaluate.speed import RunSample
from pliant.measurement import Measurement, format_bytes, format_seconds
from pliant.recipes.bench import machine_text
from pliant.subnet import Subnet
from random_models import CACHE, CONFIGS, fingerprint, full_spec
from vs_peers_cases import BF16_PROMPT, DTYPES, Case, Cases, Length, length_for
from vs_peers_goals import judged
from vs_peers_limits import Limits
from vs_peers_table import brief, table

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "vs_peers.json"
TYPES = ("Q8_0", "Q4_K_M", "Q4_0", "Q3_K_M", "Q2_K", "TQ2_0")
#: A peer's threads may still spin for a moment behind its answer.
REST_SECONDS = 0.05
#: Tokens of a run that warms up: it pages the weights in.
WARM_PROMPT, WARM_DECODE = 16, 4
#: Fewest tokens that a run is cut down to where a runner is slow beyond measure.
LEAST_DECODE = 8


def measure(cases: list[Case], repeats: int, most_seconds: float) -> dict[str, Any]:
    """Warm up, then probe and run every case in turn `repeats` times, and probe again."""
    samples: list[list[RunSample]] = [[] for _ in cases]
    cases = warmed_up(cases, most_seconds)
    limits = Limits(sorted({case.threads for case in cases}))
    begin = time.perf_counter()
    for number in range(repeats):
        order = range(len(cases)) if number % 2 == 0 else reversed(range(len(cases)))
        for place in order:
            time.sleep(REST_SECONDS)
            samples[place].append(cases[place].run())
        limits.probe()
        took = (time.perf_counter() - begin) / (number + 1)
        left = took * (repeats - number - 1)
        say(f"  round {number + 1} of {repeats} took {format_seconds(took)}"
            + (f", about {format_seconds(left)} left" if left else ""))  # fmt: skip
    lines = [line_of(case, taken, limits) for case, taken in zip(cases, samples, strict=True)]
    return limits.stored() | {"lines": lines}


def warmed_up(cases: list[Case], most_seconds: float) -> list[Case]:
    """Run every case briefly; fewer tokens to decode for all where one of them takes too long."""
    slowest, seconds = "", 0.0
    for case in cases:
        sample = case.sample(Length(min(WARM_PROMPT, case.length.prompt), WARM_DECODE))
        if sample.decode_seconds / WARM_DECODE > seconds:
            slowest, seconds = case.runner, sample.decode_seconds / WARM_DECODE
    asked = cases[0].length.decode
    tokens = max(min(LEAST_DECODE, asked), min(asked, int(most_seconds / seconds)))
    if tokens < asked:
        say(f"  {slowest} takes {format_seconds(seconds)} for a token: {tokens} instead of "
            f"{asked} tokens are decoded. Is the machine quiet?")  # fmt: skip
    return [case.with_decode(tokens) for case in cases]


def line_of(case: Case, samples: list[RunSample], limits: Limits) -> dict[str, Any]:
    """The figures of one case; the samples too, from which ratios within a round are taken."""
    under = f"{case.threads} threads"
    decode = [case.length.decode / sample.decode_seconds for sample in samples]
    prefill = [case.length.prompt / sample.first_seconds for sample in samples]
    token_bytes = case.weight_bytes + case.cache_bytes
    bandwidth = float(np.median(decode)) * token_bytes / 1e9
    int8_share = limits.int8_share(case, samples)
    line = {
        "runner": case.runner,
        "threads": case.threads,
        "prompt_tokens": case.length.prompt,
        "decode_tokens": case.length.decode,
        "weight_bytes": case.weight_bytes,
        "cache_bytes": case.cache_bytes,
        "decode": msgspec.to_builtins(Measurement.of(decode, "token/s", "decode", under)),
        "prefill": msgspec.to_builtins(Measurement.of(prefill, "token/s", "prefill", under)),
        "gigabytes_per_second": bandwidth,
        "share": limits.read_share(case, samples),
        "int8_share": int8_share,
        "decode_samples": decode,
        "prefill_samples": prefill,
    }
    say(f"  {case.runner:20} {line['decode']['median']:8.1f} token/s decode, "
        f"{line['share']:4.0%} of the read rate, "
        f"{line['prefill']['median']:8.1f} token/s prefill"
        + ("" if int8_share is None else f", {int8_share:4.0%} of the int8 peak"))  # fmt: skip
    return line


def expected_seconds(name: str, options: argparse.Namespace) -> float:
    """A guess made before anything runs, from the size of a model: 150 GOP/s and 12 GB/s."""
    spec, length = full_spec(name), length_for(name, options)
    size = Subnet.full(spec).num_parameters
    per_token = 2 * size / 150e9
    seconds = 0.0
    for bits in [*options.planes, *(4.5 for _ in options.types)]:
        seconds += length.prompt * per_token + length.decode * size * bits / 8 / 12e9
    for kind in options.torch:
        width, prompt = (4, length.prompt) if kind == "fp32" else (2, BF16_PROMPT)
        seconds += prompt * per_token + length.decode * size * width / 5e9
    # Files of a model are written and loaded once: about 12 bytes for a parameter.
    return float(seconds * len(options.threads) * options.repeats + 12 * size / 0.5e9 + 5)


def conditions(options: argparse.Namespace, versions: dict[str, Any]) -> dict[str, Any]:
    """What the figures of a model hold for."""
    from pliant import __version__, _native

    return {
        "machine": machine_text(),
        "kernels": _native.kernels.best(),
        "versions": {"pliant": __version__, **versions},
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "load_average": round(os.getloadavg()[0], 2),
        "repeats": options.repeats,
        "settings": settings(options),
    }


def settings(options: argparse.Namespace) -> str:
    """What has to be equal for results to be gone on with: the options and the engine's bytes."""
    from pliant import _native

    keys = ("planes", "types", "torch", "threads", "prompt", "most_prompt", "decode", "repeats")
    engine = hashlib.sha256(Path(_native.__file__).read_bytes()).hexdigest()
    return fingerprint({key: getattr(options, key) for key in keys}, engine)


def stored(path: Path) -> dict[str, Any]:
    """The models measured so far, by name."""
    if not path.exists():
        return {}
    models: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")).get("models", {})
    return models


def store(path: Path, models: dict[str, Any]) -> None:
    """Write results and the table of them, atomically."""
    ordered = {name: models[name] for name in CONFIGS if name in models}
    results = {
        "table": table(ordered),
        "tables": {"brief": brief(ordered)},
        "goals": judged(ordered),
        "models": ordered,
    }
    content = msgspec.json.format(msgspec.json.encode(results), indent=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial_path = path.with_suffix(".partial")
    partial_path.write_bytes(content + b"\n")
    partial_path.replace(path)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    options = parsed()
    models = stored(options.output)
    todo = [
        name for name in options.models
        if not options.resume
        or models.get(name, {}).get("conditions", {}).get("settings") != settings(options)
    ]  # fmt: skip
    seconds = sum(expected_seconds(name, options) for name in todo)
    say(f"{', '.join(todo) or 'nothing'} to measure: about {format_seconds(seconds)}, "
        f"files of models in {options.cache}")  # fmt: skip
    try:
        with ExitStack() as stack:
            llama, torch = peers(stack, options)
            versions: dict[str, Any] = {}
            for peer in (llama, torch):
                versions |= peer.ask("info") if peer else {}
            for name in todo:
                begin = time.perf_counter()
                say(f"{name}: preparing")
                with Cases(name, options, llama, torch) as cases:
                    found = measure(cases.all(), options.repeats, options.most_seconds)
                models[name] = {"conditions": conditions(options, versions), **found}
                store(options.output, models)
                say(f"{name}: done in {format_seconds(time.perf_counter() - begin)}")
                if found["drift"] > 0.1:
                    say(f"warning: the read rate moved by {found['drift']:.0%}; measure {name} "
                        "again on a quiet machine")  # fmt: skip
                if options.delete:
                    delete_files(options.cache, name)
        for goal in judged({name: models[name] for name in options.models if name in models}):
            say(f"{'met ' if goal['met'] else 'MISS'} {goal['goal']}: {goal['measured']:.2f} "
                f"(least {goal['least']:g})")  # fmt: skip
    except PeerError as error:
        say(str(error))
        return 1
    except KeyboardInterrupt:
        say("interrupted; the models that are done are stored, go on with --resume")
        return 75
    return 0


def peers(
    stack: ExitStack, options: argparse.Namespace
) -> tuple[PeerProcess | None, PeerProcess | None]:
    """The peers that were asked for, running."""
    llama = torch = None
    if options.types:
        hint = "Give --peer-python an interpreter with llama-cpp-python and gguf, or --types none."
        script = HERE / "peer_llama_cpp.py"
        llama = stack.enter_context(PeerProcess(options.peer_python, script, hint))
    if options.torch:
        hint = "Install pliant[torch,test], or give --torch none."
        torch = stack.enter_context(PeerProcess(options.torch_python, HERE / "peer_torch.py", hint))
    return llama, torch


def delete_files(cache: Path, name: str) -> None:
    """Remove the files of a model from the cache folder."""
    import shutil

    for path in cache.glob(f"{name}-*"):
        say(f"  removing {path} ({format_bytes(path.stat().st_size)})")
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def parsed() -> argparse.Namespace:
    """The options, with `none` as the empty list and what --quick changes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer-python", default=sys.executable, help="has llama-cpp-python, gguf")
    parser.add_argument("--torch-python", default=sys.executable, help="has torch, transformers")
    parser.add_argument("--models", nargs="+", default=list(CONFIGS), choices=list(CONFIGS))
    parser.add_argument("--planes", nargs="+", type=int, default=[8, 4, 3, 2, 1])
    parser.add_argument("--types", nargs="+", default=list(TYPES),
                        help="file types, `Q4_K_M:plain` is without repacking; none")  # fmt: skip
    parser.add_argument("--torch", nargs="+", default=list(DTYPES), help="fp32, bf16, or none")
    parser.add_argument("--threads", nargs="+", type=int, default=[os.cpu_count() or 1])
    parser.add_argument("--prompt", type=int, help="tokens of the prompt (512, TinyLlama 128)")
    parser.add_argument("--decode", type=int, help="tokens after the prompt (by model)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--most-seconds", type=float, default=20.0,
                        help="decode fewer tokens where a run would take longer")  # fmt: skip
    parser.add_argument("--quick", action="store_true",
                        help="prompts of 128, 2 repeats, the runners that goals name")  # fmt: skip
    parser.add_argument("--resume", action="store_true", help="leave out what is measured")
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder of random models")
    parser.add_argument("--delete", action="store_true", help="remove a model's files behind it")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    options.most_prompt = 128 if options.quick else 512
    if options.quick:
        options.repeats = min(options.repeats, 2)
        for key, few in (("planes", (4, 2)), ("types", ("Q4_0", "Q2_K", "TQ2_0")),
                         ("torch", ("fp32",))):  # fmt: skip
            asked = getattr(options, key)
            setattr(options, key, [item for item in asked if item in few] or asked[:1])
    for key in ("types", "torch"):
        setattr(options, key, [kind for kind in getattr(options, key) if kind != "none"])
    if min(options.prompt or 1, options.decode or 1, options.repeats, *options.threads) < 1:
        parser.error("prompt, repeats and threads must be at least 1")
    if not set(options.planes) <= set(range(1, 9)):
        parser.error("planes are 1 to 8")
    if not set(options.torch) <= set(DTYPES):
        parser.error(f"--torch takes {', '.join(DTYPES)} or none")
    return options


if __name__ == "__main__":
    sys.exit(main())
