"""Does the predictor beat additive sensitivities, and the joint space its single axes?

`python benchmarks/search.py` writes `benchmarks/results/search.json`. For each artifact (default:
the demo model, built with finer cuts; `--artifact NAME=X.pliant` takes others, `--checkpoint
NAME=FOLDER` builds one in the same way, such as the tuned model that `shapes.py --keep FOLDER`
leaves) it asks two questions of the engine. What was measured of other names stays in the results.

- held out: `LossPredictor` is taught by N cuts spread over all, and asked about cuts drawn at
  random that are not among them; Spearman's rank correlation and the root mean square of the
  relative error, beside those of additive sensitivities;
- budgets: at five budgets of memory the best cut of the joint space (the three best predicted are
  measured, twice, as two `pliant fit` in a row do), half blocks and ranked widths among them where
  the artifact offers them (`pliant build --finer greedy`), against the best whose blocks are whole
  and alike, the dense shape at any planes, the dense shape at the default plan `bN`, and the best
  depth x width at all planes. Cuts are chosen on one part of the held-out text and reported on
  another one, with the standard error of the difference over its documents.

It takes some five minutes of one core for each artifact of the demo's size.
"""

from __future__ import annotations

import argparse
import platform
import random
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from pliant.data import read_documents
from pliant.measurement import format_bytes
from pliant.recipes.build import build
from pliant.recipes.build_options import BuildOptions
from pliant.recipes.demo import demo_checkpoint, heldout_text
from pliant.recipes.fit import Offer, offer
from pliant.recipes.measure import excerpt, text_loss
from pliant.recipes.study import STUDIED, WORST_STUDIED, Bench
from pliant.runtime.text_engine import Pliant, open_artifact
from pliant.search import Candidate, LossPredictor, axis_increases
from pliant.search.predictor import Increases

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "search.json"
CONTEXT = 128
COUNTS = (12, 16, 24, 32, 48)
#: Memory budgets as shares of the full model's memory at all planes.
BUDGETS = (0.7, 0.6, 0.5, 0.4, 0.3)
#: Best predicted candidates of each kind that are measured before one is chosen.
VERIFIED = 3
#: Fits in a row for each budget: each learns from what the ones before it measured.
ROUNDS = 2
TEXT_BYTES = 20_000


def ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Places of values in ascending order; equal ones share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray((ends - (counts - 1) / 2)[inverse])


def agreement(predicted: NDArray[np.float64], true: NDArray[np.float64]) -> dict[str, float]:
    """Spearman's correlation and the root mean square of the relative error."""
    spearman = float(np.corrcoef(ranks(predicted), ranks(true))[0, 1])
    return {"spearman": spearman, "error": float(np.sqrt(np.mean((predicted / true - 1) ** 2)))}


def held_out(bench: Bench, offered: Offer, increases: Increases, asked: int) -> dict[str, Any]:
    """Predictor and additive sensitivities on cuts that taught neither."""
    dense_loss = offered.sensitivities.dense_loss
    design = bench.design(offered.candidates, increases, dense_loss, max(COUNTS))
    taught = set(design)
    worth = [
        item
        for item in offered.candidates
        if item.predicted_loss <= (1 + WORST_STUDIED) * dense_loss and item.subnet not in taught
    ]
    tests = random.Random(0).sample(worth, min(asked, len(worth)))
    full = bench.loss(max(offered.candidates, key=lambda item: item.memory_bytes).subnet)
    true = np.array([bench.loss(item.subnet) for item in tests]) / full
    additive = np.array([item.predicted_loss for item in tests]) / dense_loss
    lines = [{"taught": 0, "kind": "additive sensitivities", **agreement(additive, true)}]
    for count in COUNTS:
        known = {net: bench.loss(net) / full for net in design[:count]}
        predictor = LossPredictor(increases, known)
        predicted = predictor.predict([item.subnet for item in tests])
        lines.append(
            {
                "taught": count,
                "kind": "predictor",
                "expected_error": predictor.error,
                **agreement(predicted, true),
            }
        )
    return {"asked": len(tests), "lines": lines}


def is_default_plan(candidate: Candidate) -> bool:
    """Whether nothing but the planes of blocks was named: `b4`."""
    return candidate.is_dense and candidate.address.vocabulary_planes is None


KINDS: dict[str, Callable[[Candidate, int], bool]] = {
    "joint": lambda candidate, planes: True,
    "joint, blocks whole and alike": lambda candidate, planes: candidate.subnet.shape.is_uniform,
    "bits only": lambda candidate, planes: candidate.is_dense,
    "dense at fewer bits": lambda candidate, planes: is_default_plan(candidate),
    "shape only": lambda candidate, planes: (
        candidate.subnet.bits.embedding == planes == candidate.subnet.bits.blocks[0].q
    ),
}


class Report:
    """Losses of cuts on text that chose none of them, document by document."""

    def __init__(self, model: Pliant, documents: Sequence[str], threads: int) -> None:
        self._model = model
        self._documents = documents
        self._threads = threads
        self._known: dict[Any, NDArray[np.float64]] = {}
        self._bytes = np.array([len(document.encode()) for document in documents])

    def losses(self, subnet: Any) -> NDArray[np.float64]:
        """Bits of each document."""
        if subnet not in self._known:
            measured = [
                text_loss(self._model, subnet, [document], self._threads)
                for document in self._documents
            ]
            bits = [loss.bits_per_byte * loss.num_bytes for loss in measured]
            self._known[subnet] = np.array(bits)
        return self._known[subnet]

    def bits_per_byte(self, subnet: Any) -> float:
        """The loss on all documents."""
        return float(self.losses(subnet).sum() / self._bytes.sum())

    def difference(self, one: Any, other: Any) -> tuple[float, float]:
        """Bits per byte of `one` less those of `other`, and the standard error of it."""
        gaps = (self.losses(one) - self.losses(other)) / self._bytes.mean()
        return float(gaps.mean()), float(gaps.std(ddof=1) / np.sqrt(len(gaps)))


def budgets(
    bench: Bench, offered: Offer, increases: Increases, report: Report, planes: int
) -> list[dict[str, Any]]:
    """The best cut of each kind at each budget."""
    whole = max(candidate.memory_bytes for candidate in offered.candidates)
    lines = []
    for share in BUDGETS:
        limit = round(share * whole)
        for _ in range(ROUNDS):
            offered = _taught(bench, offered, increases)
            subnets = _chosen(bench, offered, limit, planes)
        line: dict[str, Any] = {"budget_bytes": limit, "kinds": {}}
        for kind, chosen in subnets.items():
            line["kinds"][kind] = {
                "cut": str(chosen.address),
                "memory_bytes": chosen.memory_bytes,
                "bits_per_byte": report.bits_per_byte(chosen.subnet),
            }
        line["joint_less"] = {
            kind: report.difference(subnets["joint"].subnet, chosen.subnet)
            for kind, chosen in subnets.items()
            if kind != "joint"
        }
        lines.append(line)
    return lines


def _taught(bench: Bench, offered: Offer, increases: Increases) -> Offer:
    """Predictions learnt from all that was measured, as each `pliant fit` on a text has them."""
    predictor = bench.predictor(
        offered.candidates, increases, offered.sensitivities.dense_loss, STUDIED
    )
    if predictor is None:
        raise SystemExit("The artifact has too few cuts worth measuring.")
    return offered.predicted_by(predictor)


def _chosen(bench: Bench, offered: Offer, limit: int, planes: int) -> dict[str, Candidate]:
    """Of each kind the best measured cut within a limit, the best predicted ones measured."""
    chosen = {}
    for kind, belongs in KINDS.items():
        fitting = sorted(
            (
                item
                for item in offered.candidates
                if item.memory_bytes <= limit and belongs(item, planes)
            ),
            key=lambda item: item.predicted_loss,
        )
        # As `pliant fit` does: the best dense shape is measured too, and what was measured counts.
        finalists = fitting[:VERIFIED] + [item for item in fitting if item.is_dense][:1]
        finalists += [item for item in fitting if item.subnet in bench.losses]
        if finalists:
            chosen[kind] = min(finalists, key=lambda item: bench.loss(item.subnet))
    return chosen


def measured(
    path: Path, options: argparse.Namespace, before: dict[str, Any] | None
) -> dict[str, Any]:
    """Both answers for one artifact; the first one from `before` where nothing is asked."""
    documents = read_documents(heldout_text(demo_checkpoint()))
    chosen_on = excerpt(documents, TEXT_BYTES)
    reported_on = documents[len(chosen_on) :]
    with open_artifact(path) as model:
        offered = offer(model, CONTEXT, kv_bits=16)
        bench = Bench(model, chosen_on, options.threads)
        spec, alignment = model.artifact.spec, model.artifact.manifest.alignment.neurons
        increases = axis_increases(offered.sensitivities, spec, alignment)
        answer = before
        if options.asked or answer is None:
            answer = held_out(bench, offered, increases, options.asked)
        report = Report(model, reported_on, options.threads)
        return {
            "full_bits_per_byte": report.bits_per_byte(model.subnet()),
            "documents": len(reported_on),
            "held_out": answer,
            "budgets": budgets(bench, offered, increases, report, model.artifact.num_planes),
        }


def heldout_table(answers: dict[str, Any]) -> dict[str, Any]:
    """Predictor against additive sensitivities, for `benchmarks/tables.py`."""
    rows = [
        [
            name,
            line["kind"],
            str(line["taught"]) if line["taught"] else "",
            f"{line['spearman']:.4f}",
            f"{line['error']:.2%}",
        ]
        for name, answer in answers.items()
        for line in answer["held_out"]["lines"]
    ]
    asked = ", ".join(str(answer["held_out"]["asked"]) for answer in answers.values())
    return {
        "columns": ["artifact", "prediction", "cuts taught by", "Spearman", "error"],
        "align": "llrrr",
        "rows": rows,
        "caption": f"Asked about {asked} cuts that taught nothing; error is the root mean square "
        "of the relative error of the loss.",
    }


def budget_table(answers: dict[str, Any]) -> dict[str, Any]:
    """The best of each kind at each budget, for `benchmarks/tables.py`."""

    def cell(line: dict[str, Any], kind: str, full: float) -> str:
        found = line["kinds"].get(kind)
        if found is None:
            return "nothing fits"
        return f"`{found['cut']}` {found['bits_per_byte'] / full - 1:+.1%}"

    def gap(line: dict[str, Any], kind: str) -> str:
        found = line["joint_less"].get(kind)
        return "" if found is None else f"{found[0]:+.3f} ± {found[1]:.3f}"

    rows = [
        [
            name,
            format_bytes(line["budget_bytes"]),
            *(cell(line, kind, answer["full_bits_per_byte"]) for kind in KINDS),
            gap(line, "bits only"),
            gap(line, "joint, blocks whole and alike"),
        ]
        for name, answer in answers.items()
        for line in answer["budgets"]
    ]
    return {
        "columns": [
            "artifact",
            "memory",
            *KINDS,
            "joint less bits only, bits/byte",
            "joint less blocks alike",
        ],
        "align": "lrlllllrr",
        "rows": rows,
        "caption": f"Loss over the full model's at 8 planes; memory with {CONTEXT} tokens of "
        "cache. Chosen on 20 kB of held-out text, reported on the rest of it; ± is the standard "
        "error over its documents.",
    }


def _named(items: Sequence[str]) -> dict[str, Path]:
    parts = [item.partition("=") for item in items]
    return {name: Path(path) for name, _, path in parts}


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--artifact", action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("--checkpoint", action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument(
        "--asked", type=int, default=60, help="held-out cuts; 0 keeps what was measured before"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    answers: dict[str, Any] = {}
    if options.output.exists():
        answers = msgspec.json.decode(options.output.read_bytes())["answers"]
    with tempfile.TemporaryDirectory() as folder:
        paths = _named(options.artifact)
        checkpoints = _named(options.checkpoint)
        if not paths and not checkpoints:
            checkpoints["tale-750k"] = demo_checkpoint()
        for name, checkpoint in checkpoints.items():
            paths[name] = Path(folder) / f"{name}.pliant"
            build(
                checkpoint,
                paths[name],
                calibration=demo_checkpoint() / "calibration.txt",
                options=BuildOptions(finer="greedy"),
            )
        for name, path in paths.items():
            before = answers.get(name, {}).get("held_out")
            answers[name] = measured(path, options, before)
            fresh = {name: answers[name]}
            for line in heldout_table(fresh)["rows"] + budget_table(fresh)["rows"]:
                print("  ".join(line), flush=True)
    results = {
        "machine": f"{platform.system()} {platform.machine()}",
        "answers": answers,
        "tables": {"heldout": heldout_table(answers), "budgets": budget_table(answers)},
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    content = msgspec.json.format(msgspec.json.encode(results), indent=2)
    options.output.write_bytes(content + b"\n")


if __name__ == "__main__":
    main()
