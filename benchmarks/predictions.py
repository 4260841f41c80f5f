"""Do predictions hold? Foreseen against measured time and memory, over many subnets and shapes.

`python benchmarks/predictions.py` probes this machine (as `pliant probe`), then measures decoding
and prompts of the demo model and of random models of 0.5 and 1 billion weights: cuts of depth,
width and planes, 1 thread and all, prompts of 64 to 512 tokens, decoding behind 1 to 2048. No shape
is among those the probe fits. It writes `benchmarks/results/predictions.json` with the
goals: median absolute error of decoding at most 7 %, of prompts 12 %, Spearman's correlation at
least 0.98; peak memory of processes within 3 % and never below. It writes `published.json` too:
our cost model beside figures that others published, with the reason for each difference.

About 4 minutes; nothing else should run. `--quick` takes one, on the demo model and few cuts.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pliant.artifact import Artifact
from pliant.bits import BitPlan
from pliant.costs import EngineOptions, Step, footprint, prefill_steps, step_graph
from pliant.costs.calibration import Calibration, step_seconds
from pliant.costs.device import Device
from pliant.costs.footprint import process_bytes
from pliant.costs.least_squares import rank_correlation
from pliant.costs.transfer import fit_transfer, transferred_seconds
from pliant.recipes.bench import machine_text
from pliant.recipes.probe import probe
from pliant.recipes.probe_engine import clock_for, seconds_per_run
from pliant.runtime import Chunk
from pliant.runtime.engine import Engine
from pliant.runtime.kernel_speed import default_threads, kernel_name
from pliant.shape import SubnetShape
from pliant.spec import ModelSpec
from pliant.subnet import CutAddress, Subnet
from predictions_published import published_table
from random_models import CACHE, CONFIGS, random_artifact

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
#: Cuts of each model: full shape by planes, then depth, width, and all at once.
CUTS: dict[str, tuple[str, ...]] = {
    "tale-750k": ("b8", "b4", "b2", "d3-b4", "w0.5-b4", "d4-w0.75-b3"),
    "Qwen2.5-0.5B": ("b8", "b4", "b3", "b1", "d12-b4", "w0.5-b4", "d18-w0.5-b2", "d6-w0.5-b6",
                     "d4-b5"),
    "TinyLlama-1.1B": ("b4", "b2", "d11-b3", "d6-w0.75-b6"),
}  # fmt: skip
CONTEXTS = (1, 128, 512, 2048)
PROMPTS = (64, 200, 512)
GOALS = {"decode": 0.07, "prefill": 0.12, "spearman": 0.98, "memory": 0.03}
#: Prompts, and prefills up to a context, that are foreseen to take longer are left out: the smaller
#: cuts have them. Short prompts are run more often.
_MOST_PROMPT_SECONDS, _MOST_GROWTH_SECONDS, _OFTEN_SECONDS = 1.6, 3.0, 0.3
#: Tokens of a chunk of a prompt, as the runtime takes them.
_CHUNK = 128
#: Steps given to the predictor of few measurements, on a device of which nothing else is known.
_FEW = 10


@dataclass(frozen=True)
class Line:
    """One step of one subnet: what was foreseen and what it took."""

    model: str
    cut: str
    threads: int
    kind: str
    tokens: int
    context: int
    foreseen_seconds: float
    measured_seconds: float

    @property
    def error(self) -> float:
        """Relative; above 0 where more was foreseen than it took."""
        return self.foreseen_seconds / self.measured_seconds - 1.0


def cut_of(spec: ModelSpec, address: str) -> Subnet:
    """The first blocks of a model at a width and planes: random models have no depth paths."""
    cut = CutAddress.parse(address)
    depth = cut.depth or spec.num_blocks
    shape = SubnetShape.uniform(spec, tuple(range(depth)), cut.width)
    return Subnet(spec, shape, BitPlan.uniform(depth, cut.planes or 8))


def lines_of(
    artifact: Artifact, name: str, cut: str, calibrations: Sequence[Calibration], seconds: float
) -> Iterator[tuple[Line, Any]]:
    """Decoding and prompts of one cut, with the graph of each decoded step."""
    threads = calibrations[-1].threads
    subnet = cut_of(artifact.spec, cut)
    clock = clock_for(threads)
    limit = min(subnet.spec.max_context, CONTEXTS[-1] + _CHUNK)
    tokens = np.random.default_rng(0).integers(0, subnet.spec.vocab_size, _CHUNK, np.int32)
    with Engine(artifact, subnet, threads, preload="all") as engine:
        cache = engine.new_cache(limit)
        for count in (count for count in PROMPTS if count < limit):
            foreseen = prompt_seconds(subnet, count, calibrations)
            if foreseen > _MOST_PROMPT_SECONDS:
                continue
            taken = []
            for _ in range(5 if foreseen < _OFTEN_SECONDS else 2):
                cache.truncate(0)
                start = clock()
                for step in prefill_steps(count, _CHUNK):
                    wanted = "last" if step.logits else "none"
                    engine.forward_chunk([Chunk(tokens[: step.tokens], cache, logits=wanted)])  # type: ignore[arg-type]
                taken.append(clock() - start)
            measured = quartile(taken)
            yield Line(name, cut, threads, "prefill", count, 0, foreseen, measured), None
        # Prefill behind long contexts is not what is asked here, so the cache is grown by it.
        for context in (context for context in CONTEXTS if context < limit):
            if prompt_seconds(subnet, context, calibrations) > _MOST_GROWTH_SECONDS:
                break
            while cache.length < context:
                part = tokens[: min(_CHUNK, context - cache.length)]
                engine.forward_chunk([Chunk(part, cache, logits="none")])
            cache.truncate(context)
            step = Step.decode(context)

            def decode(context: int = context) -> None:
                engine.forward_chunk([Chunk(tokens[:1], cache)])
                cache.truncate(context)

            graph = step_graph(subnet, step)
            foreseen = step_seconds(graph, step, calibrations)
            measured = quartile([seconds_per_run(decode, seconds, threads) for _ in range(5)])
            yield Line(name, cut, threads, "decode", 1, context, foreseen, measured), graph


def prompt_seconds(subnet: Subnet, tokens: int, calibrations: Sequence[Calibration]) -> float:
    """Foreseen seconds of a prompt."""
    return sum(
        step_seconds(step_graph(subnet, step), step, calibrations)
        for step in prefill_steps(tokens, _CHUNK)
    )


def quartile(seconds: Sequence[float]) -> float:
    """The lower quartile: about the median of a quiet machine, little of the others' on a busy."""
    return float(np.quantile(seconds, 0.25))


_PEAK = """
import json, sys
import numpy as np
from pliant.artifact import Artifact
from pliant.measurement import peak_memory_bytes
from pliant.runtime import Chunk
from pliant.runtime.engine import Engine
from pliant.subnet import Subnet
path, cut, threads, context = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
with Engine(Artifact.open(path), Subnet.from_json(cut.encode()), threads, preload="all") as engine:
    cache = engine.new_cache(context)
    tokens = np.ones(128, np.int32)
    while cache.length < context - 1:
        count = min(128, context - 1 - cache.length)
        engine.forward_chunk([Chunk(tokens[:count], cache, logits="last")])
    engine.forward_chunk([Chunk(tokens[:1], cache)])
    # Pages mapped beside those that are read are the system's choice, and taken back at need.
    peak = peak_memory_bytes()
    rows, own = open("/proc/self/smaps").read().splitlines(), False
    mapped = 0
    for row in rows:
        if "-" in row.split(" ")[0]:
            own = path in row
        elif own and row.startswith("Rss:"):
            mapped += int(row.split()[1]) * 1024
    print(json.dumps([peak - mapped + engine.memory()["touched"], peak]))
"""


def memory_line(artifact: Artifact, name: str, cut: str, device: Device) -> dict[str, Any]:
    """Peak memory of a process that runs a cut, foreseen and measured.

    Measured is what it holds alone and the bytes of the artifact that it reads; `resident_bytes`
    has in addition the pages of the artifact that the system mapped beside those.
    """
    subnet = cut_of(artifact.spec, cut)
    context, threads = min(512, subnet.spec.max_context), default_threads()
    done = subprocess.run(
        [sys.executable, "-c", _PEAK, str(artifact.path), subnet.to_json().decode(),
         str(threads), str(context)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    steps = [*prefill_steps(context - 1, _CHUNK), Step.decode(context - 1)]
    options = EngineOptions(threads=threads, kernels=kernel_name())
    foreseen = footprint(subnet, steps, context, options)
    total = process_bytes(subnet, foreseen, device.runtime_bytes)
    measured, resident = json.loads(done.stdout)
    return {"model": name, "cut": cut, "foreseen_bytes": total, "measured_bytes": measured,
            "resident_bytes": resident, "error": total / measured - 1}  # fmt: skip


def few_measurements(pairs: Sequence[tuple[Line, Any]]) -> dict[str, float]:
    """Median error of decoding where a device is known by a handful of steps only."""
    known = [pair for pair in pairs if pair[1] is not None]
    if len(known) < 2 * _FEW:
        return {}
    chosen = {round(place * (len(known) - 1) / (_FEW - 1)) for place in range(_FEW)}
    order = sorted(range(len(known)), key=lambda place: known[place][1].memory_bytes)
    support = [known[order[place]] for place in sorted(chosen)]
    rest = [known[order[place]] for place in range(len(known)) if place not in chosen]
    transfer = fit_transfer(
        [graph for _, graph in support], [line.measured_seconds for line, _ in support]
    )
    foreseen = np.array([transferred_seconds(graph, transfer) for _, graph in rest])
    measured = np.array([line.measured_seconds for line, _ in rest])
    return {
        "samples": len(support),
        "median_error": float(np.median(np.abs(foreseen / measured - 1))),
        "spearman": rank_correlation(foreseen, measured),
        "left_out_error": transfer.error,
    }


def summary(lines: Sequence[Line], kind: str) -> dict[str, Any]:
    """Errors of one kind of step over all models, and of each model."""
    found = [line for line in lines if line.kind == kind]
    foreseen = np.array([line.foreseen_seconds for line in found])
    measured = np.array([line.measured_seconds for line in found])
    errors = np.abs(foreseen / measured - 1)
    return {
        "steps": len(found),
        "median_error": float(np.median(errors)),
        "p90_error": float(np.quantile(errors, 0.9)),
        "bias": float(np.median(foreseen / measured - 1)),
        "spearman": rank_correlation(foreseen, measured),
    }


def main() -> int:
    options = parsed()
    models = ("tale-750k",) if options.quick else tuple(CUTS)
    seconds = 0.01 if options.quick else 0.03
    device = probe(options.threads)
    pairs: list[tuple[Line, Any]] = []
    memory: list[dict[str, Any]] = []
    for name in models:
        artifact = random_artifact(name, CONFIGS[name], cache=options.cache)
        # Turn by turn, so that a slow moment does not fall on one number of threads.
        for cut in CUTS[name]:
            for place in range(len(device.calibrations)):
                calibrations = device.calibrations[: place + 1]
                found = list(lines_of(artifact, name, cut, calibrations, seconds))
                pairs += found
                worst = max(abs(line.error) for line, _ in found)
                print(f"{name} {cut} {calibrations[-1].threads} threads: worst {worst:.0%}",
                      file=sys.stderr, flush=True)  # fmt: skip
        memory += [memory_line(artifact, name, cut, device) for cut in CUTS[name][:5:2]]
    lines = [line for line, _ in pairs]
    results = report(lines, memory, device) | {"few": few_measurements(pairs)}
    RESULTS.mkdir(exist_ok=True)
    (options.output or RESULTS / "predictions.json").write_text(json.dumps(results, indent=1))
    (RESULTS / "published.json").write_text(json.dumps({"table": published_table()}, indent=1))
    print(json.dumps({key: results[key] for key in ("decode", "prefill", "memory_worst", "few")}))
    return 0


def report(
    lines: Sequence[Line], memory: Sequence[dict[str, Any]], device: Device
) -> dict[str, Any]:
    """Everything that was found, with the table for documents."""
    names = list(dict.fromkeys((line.model, line.threads) for line in lines))
    rows = []
    for model, threads in names:
        own = [line for line in lines if (line.model, line.threads) == (model, threads)]
        cells = [model, str(threads)]
        for kind in ("decode", "prefill"):
            part = summary(own, kind)
            cells += [str(part["steps"]), f"{part['median_error']:.1%}",
                      f"{part['p90_error']:.1%}", f"{part['spearman']:.3f}"]  # fmt: skip
        rows.append(cells)
    whole = {kind: summary(lines, kind) for kind in ("decode", "prefill")}
    for kind, part in whole.items():
        part["goal"] = GOALS[kind]
    errors = [line["error"] for line in memory]
    cells = ["all", ""]
    for part in whole.values():
        cells += [str(part["steps"]), f"{part['median_error']:.1%}", f"{part['p90_error']:.1%}",
                  f"{part['spearman']:.3f}"]  # fmt: skip
    fitted = "; ".join(
        f"{item.threads} threads {item.decode_error:.1%} and {item.prefill_error:.1%}"
        for item in device.calibrations
    )
    return {
        **whole,
        "memory": list(memory),
        "memory_worst": [min(errors), max(errors)],
        "lines": [asdict(line) | {"error": line.error} for line in lines],
        "machine": machine_text(),
        "table": {
            "columns": ["model", "threads", "decode steps", "median error", "90 %", "Spearman",
                        "prompts", "median error", "90 %", "Spearman"],
            "align": "lrrrrrrrrr",
            "rows": [*rows, cells],
            "caption": f"No shape was seen by the probe; errors it foresaw: {fitted}. Peak memory "
            f"of {len(errors)} processes: {min(errors):+.1%} to {max(errors):+.1%} of measured. "
            f"{machine_text()}, kernels {kernel_name()}.",
        },
    }  # fmt: skip


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one minute, the demo model only")
    parser.add_argument("--threads", type=int, help="the most threads (all cores); 1 and these")
    parser.add_argument("--cache", type=Path, default=CACHE, help="where random models are kept")
    parser.add_argument("--output", type=Path, help="where results go")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
