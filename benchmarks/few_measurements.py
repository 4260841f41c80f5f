"""How far do ten measurements carry to a device nobody probed? Least squares against HELP.

`python benchmarks/few_measurements.py` times the same 54 steps of small random models on a family
of machines: this one with each kernel path it has, with 1 thread and all, with each type of cache,
and beside a process that keeps a core busy. Some of them stand for a device of which only 8, 10 or
12 steps were measured, the others for the devices that a learned predictor was trained on, together
with made ones: data sheets of `pliant devices` with efficiencies, launch costs and noise drawn at
random. A machine is never foreseen by one with its kernels. What is compared is the
median error on the steps that were not measured; `benchmarks/results/few_measurements.json` has it.

About 3 minutes to measure (`--measure` alone; kept beside the results) and 5 to learn. HELP is
`few_help.py`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from few_help import Help
from pliant.costs import Graph, Step, step_graph
from pliant.costs.device import PROFILES, read_device
from pliant.costs.least_squares import median_error, rank_correlation
from pliant.costs.transfer import fit_transfer, transferred_seconds
from pliant.recipes.bench import machine_text
from pliant.recipes.probe_engine import Model, _spec, timed_steps
from pliant.runtime.kernel_speed import default_threads, kernel_name, kernel_paths
from pliant.subnet import Subnet

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
#: Times as they were measured, and what was made of them.
MEASURED, COMPARED = RESULTS / "few_devices.json", RESULTS / "few_measurements.json"
_CACHES = (16, 8, 32)
#: Steps measured on a device that is to be foreseen.
COUNTS = (8, 10, 12)


def _model(
    hidden: int, blocks: int, heads: int, groups: int, ffn: int, planes: int, vocab: int = 512
) -> Model:
    """A random model and its six steps: four tokens decoded behind contexts, two prompts."""
    spec = _spec(hidden, blocks, heads, groups, hidden // heads, ffn, vocab)
    return Model(spec, planes, ((1, 1), (100, 1), (400, 1), (1000, 1), (0, 16), (64, 48)))


#: Shapes by width, depth, heads, neurons and planes: from what a cache holds to what memory brings.
SHAPES: tuple[Model, ...] = (
    _model(64, 2, 4, 2, 128, 6, 256),
    _model(128, 8, 4, 2, 256, 4),
    _model(192, 4, 6, 3, 512, 2, 2048),
    _model(256, 6, 8, 2, 512, 4),
    _model(256, 2, 4, 4, 1024, 8),
    _model(384, 5, 6, 2, 1024, 3),
    _model(512, 4, 4, 4, 512, 3),
    _model(512, 3, 8, 8, 1024, 1),
    _model(768, 3, 12, 4, 2048, 5, 4096),
)
#: Kernels without vectors take a minute for one round.
_ROUNDS = {"scalar": 1}


def busy() -> None:
    """Walk through more memory than caches hold, for ever."""
    field = np.zeros(2**24, np.float32)
    while True:
        field += 1.0


def own_times(threads: int, cache_bits: int, contended: bool) -> list[float]:
    """Seconds of every step in this process, whose kernels PLIANT_ISA may have chosen."""
    other = multiprocessing.Process(target=busy, daemon=True)
    if contended:
        other.start()
        time.sleep(0.5)
    try:
        return [
            item.seconds
            for item in timed_steps(threads, cache_bits, _ROUNDS.get(kernel_name(), 3), SHAPES)
        ]
    finally:
        if contended:
            other.terminate()


def machines() -> Iterator[tuple[str, int, int, bool]]:
    """Kernels, threads, cache bits and contention of each machine of the family."""
    for kernels in kernel_paths():
        for threads in sorted({1, default_threads()}):
            for bits in _CACHES if kernels not in _ROUNDS else (16,):
                yield kernels, threads, bits, False
            if kernels == kernel_paths()[0]:
                yield kernels, threads, 16, True


def measure(found: list[dict[str, Any]]) -> None:
    """Every machine of the family that `found` lacks, each in a process of its own."""
    known = {item["name"] for item in found}
    for kernels, threads, bits, contended in machines():
        name = f"{kernels}, {threads} threads, {bits}-bit cache" + (", busy" if contended else "")
        if name in known:
            continue
        done = subprocess.run(
            [sys.executable, __file__, "--own", f"{threads},{bits},{int(contended)}"],
            env={**os.environ, "PLIANT_ISA": kernels}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        print(name, file=sys.stderr, flush=True)
        found.append({
            "name": name, "kernels": kernels,
            "threads": threads, "cache_bits": bits, "seconds": json.loads(done.stdout),
        })  # fmt: skip
        MEASURED.write_text(json.dumps({"machine": machine_text(), "devices": found}, indent=1))


def steps() -> list[tuple[Graph, Step]]:
    """Every step that `timed_steps` ran, with its graph, in its order."""
    found = []
    for model in SHAPES:
        subnet = Subnet.full(model.spec, model.planes)
        for cached, count in model.steps:
            step = Step(tokens=count, cached=cached)
            found.append((step_graph(subnet, step), step))
    return found


def features(every: Sequence[tuple[Graph, Step]]) -> NDArray[np.float64]:
    """What HELP is told of a step: logarithms of its operations, bytes, tokens, depth and reach."""
    rows = []
    for graph, step in every:
        products = [item for item in graph.operators if item.kind == "product"]
        blocks = max(item.count for item in graph.operators)
        sizes = (
            graph.operations, graph.weight_bytes, graph.cache_bytes + 1, step.tokens,
            step.cached + 1, blocks, max(item.columns for item in products), products[0].planes,
        )  # fmt: skip
        rows.append(np.log(np.array(sizes, np.float64)))
    return np.array(rows)


def made_devices(every: Sequence[tuple[Graph, Step]], count: int, seed: int) -> NDArray[np.float64]:
    """Times `[count, N]` on devices made of data sheets: efficiencies, launches, noise drawn."""
    draw = np.random.default_rng(seed)
    sheets = [read_device(path) for path in sorted(PROFILES.glob("*.toml"))]
    rows = []
    for _ in range(count):
        device = sheets[draw.integers(len(sheets))]
        arithmetic, memory = draw.uniform(0.05, 0.7, 2) * (1.0, 1.2)
        launch, step_cost = np.exp(draw.uniform(np.log(1e-7), np.log(2e-5), 2))
        times = [
            step_cost + sum(
                item.count * (launch + max(
                    item.operations / device.rate(item.arithmetic) / arithmetic,
                    item.memory_bytes / device.bandwidth.value / memory,
                ))
                for item in graph.operators
            )
            for graph, _ in every
        ]  # fmt: skip
        rows.append(np.array(times) * np.exp(draw.normal(0, 0.03, len(times))))
    return np.array(rows)


def chosen(every: Sequence[tuple[Graph, Step]], count: int) -> list[int]:
    """Steps to measure: spread over their operations, the least and the most among them."""
    order = sorted(range(len(every)), key=lambda place: every[place][0].operations)
    return sorted({order[round(n * (len(order) - 1) / (count - 1))] for n in range(count)})


def errors_of(
    foreseen: NDArray[np.float64], measured: NDArray[np.float64], known: Sequence[int]
) -> tuple[float, float]:
    """Median error and Spearman's correlation over the steps that were not measured."""
    rest = [place for place in range(len(measured)) if place not in known]
    return (
        median_error(foreseen[rest], measured[rest]),
        rank_correlation(foreseen[rest], measured[rest]),
    )


def nearest(times_DN: NDArray[np.float64], seconds_K: NDArray[np.float64],
            known: Sequence[int]) -> NDArray[np.float64]:  # fmt: skip
    """The known device whose times are most alike but for a factor, times that factor."""
    ratio_DK = np.log(times_DN[:, list(known)]) - np.log(seconds_K)
    place = int(ratio_DK.std(1).argmin())
    return times_DN[place] * float(np.exp(-np.median(ratio_DK[place])))  # type: ignore[no-any-return]


def compare(devices: Sequence[dict[str, Any]], episodes: int, seeds: int) -> list[dict[str, Any]]:
    """Errors by method, number of measured steps and kind of device that is foreseen."""
    every = steps()
    inputs = features(every)
    real_DN = np.array([device["seconds"] for device in devices])
    made_DN = made_devices(every, 200, 0)
    unseen_DN = made_devices(every, 20, 1)
    families = [device["kernels"] for device in devices]
    found: dict[tuple[str, str, int], list[tuple[float, float]]] = {}
    for count in COUNTS:
        known = chosen(every, count)
        for family in [*dict.fromkeys(families), ""]:
            own = [name == family for name in families]
            taught = np.concatenate([real_DN[[not item for item in own]], made_DN])
            tested = real_DN[own] if family else unseen_DN
            helps = [Help(inputs, taught, known, episodes, seed) for seed in range(seeds)]
            kind = "machines" if family else "made of data sheets"
            for times in tested:
                seconds = times[known]
                transfer = fit_transfer([every[place][0] for place in known], list(seconds))
                fitted = np.array([transferred_seconds(graph, transfer) for graph, _ in every])
                ways = {
                    "least squares": fitted,
                    "nearest known device": nearest(taught, seconds, known),
                }
                for name, foreseen in ways.items():
                    found.setdefault((name, kind, count), []).append(
                        errors_of(foreseen, times, known)
                    )
                for learner in helps:
                    found.setdefault(("HELP", kind, count), []).append(
                        errors_of(learner.foreseen(seconds), times, known)
                    )
            print(f"{count} steps, {family or kind}", file=sys.stderr, flush=True)
    return lines_of(found)


def lines_of(found: dict[tuple[str, str, int], list[tuple[float, float]]]) -> list[dict[str, Any]]:
    """Each method, kind of device and number of steps, with its errors summed up."""
    lines = []
    for (name, kind, count), errors in found.items():
        middle, worst = (float(np.quantile([e for e, _ in errors], q)) for q in (0.5, 0.9))
        spearman = float(np.median([rank for _, rank in errors]))
        lines.append({"method": name, "devices": kind, "steps": count, "median_error": middle,
                      "p90_error": worst, "spearman": spearman})  # fmt: skip
    return lines


def report(lines: Sequence[dict[str, Any]], machines: int, seeds: int) -> dict[str, Any]:
    """The table for documents, and the figures as numbers."""
    rows = []
    for kind in ("machines", "made of data sheets"):
        for name in ("least squares", "nearest known device", "HELP"):
            own = [line for line in lines if (line["devices"], line["method"]) == (kind, name)]
            cells = [f"{line['median_error']:.1%} / {line['p90_error']:.1%}" for line in own]
            rows.append([kind, name, *cells, f"{own[1]['spearman']:.3f}"])
    return {
        "lines": lines,
        "seeds": seeds,
        "table": {
            "columns": ["foreseen", "by", *(f"{count} steps" for count in COUNTS), "Spearman (10)"],
            "align": "llrrrr",
            "rows": rows,
            "caption": f"Median error / 90 % over devices, on steps not measured. {machines} "
            "measured machines, each foreseen without those of its kernels, and 20 of "
            f"data sheets; 200 of data sheets to learn from; HELP with {seeds} seeds. "
            f"{machine_text()}.",
        },
    }  # fmt: skip


def main() -> int:
    options = parsed()
    if options.own:
        threads, bits, contended = map(int, options.own.split(","))
        print(json.dumps(own_times(threads, bits, bool(contended))))
        return 0
    found = json.loads(MEASURED.read_text())["devices"] if MEASURED.exists() else []
    found = [] if options.measure else found
    if not options.compare:
        measure(found)
    lines, seeds = [], options.seeds
    if options.keep_help:
        kept = json.loads(COMPARED.read_text())
        lines = [line for line in kept["lines"] if line["method"] == "HELP"]
        seeds = kept["seeds"]
    lines += compare(found, options.episodes, 0 if options.keep_help else seeds)
    results = report(lines, len(found), seeds)
    COMPARED.write_text(json.dumps(results, indent=1))
    for row in results["table"]["rows"]:
        print(" | ".join(row))
    return 0


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", action="store_true", help="time the steps again")
    parser.add_argument("--compare", action="store_true", help="take the times that are there")
    parser.add_argument("--episodes", type=int, default=500, help="meta-batches that HELP sees")
    parser.add_argument("--seeds", type=int, default=1, help="times that HELP is learned")
    parser.add_argument(
        "--keep-help", action="store_true", help="take HELP's errors of the last comparison too"
    )
    parser.add_argument("--own", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
