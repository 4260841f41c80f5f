"""What do int8 activations and small caches cost in quality?

`python benchmarks/activations.py` writes `benchmarks/results/activations.json`: held-out bits per
byte of the demo model with exact activations and an exact cache, and what each rounding adds to
them: activations to int8 per group of 64, keys and values to float16 or to int8 per head. The goal
is below 0.3 % for what is on by default. Windows are the model's whole context, so that caches are
as long as they get.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import msgspec

from pliant._native import kernels
from pliant.bits.cache import CacheType
from pliant.data import read_documents
from pliant.evaluate import evaluate_text
from pliant.recipes.build import build
from pliant.recipes.demo import demo_checkpoint, heldout_text
from pliant.runtime.assembly import Activations
from pliant.runtime.text_engine import Pliant, open_artifact

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "activations.json"

#: Activations and cache; the first is what the others are compared with.
MODES: list[tuple[Activations, CacheType]] = [
    ("float32", "float32"), ("float32", "float16"), ("float32", "int8"), ("int8", "float32"),
    ("int8", "float16"), ("int8", "int8"),
]  # fmt: skip
DEFAULT: tuple[Activations, CacheType] = ("int8", "float16")
GOAL = 0.003


def main() -> None:
    options = _parser().parse_args()
    checkpoint = demo_checkpoint()
    artifact = options.artifact or ROOT / ".demo" / "tale.pliant"
    if not artifact.exists():
        artifact.parent.mkdir(parents=True, exist_ok=True)
        build(checkpoint, artifact, calibration=checkpoint / "calibration.txt")
    documents = read_documents(heldout_text(checkpoint))
    lines: list[dict[str, Any]] = []
    with open_artifact(artifact) as model:
        for address in options.cuts:
            lines += measured(model, address, documents, options.threads)
    results = {"kernels": kernels.best(), "goal": GOAL, "table": table(lines), "lines": lines}
    options.output.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=2) + b"\n")
    for line in lines:
        if (line["activations"], line["cache"]) == DEFAULT and line["added"] > GOAL:
            raise SystemExit(f"{line['cut']}: {line['added']:.2%} is above the goal of {GOAL:.1%}.")


def measured(
    model: Pliant, address: str, documents: list[str], threads: int | None
) -> list[dict[str, Any]]:
    """One line for each way of rounding, for one cut."""
    lines: list[dict[str, Any]] = []
    for activations, cache in MODES:
        text = model.engine(address, threads=threads, activations=activations, cache_type=cache)
        loss = evaluate_text(text.engine, model.tokenizer, documents)
        exact = lines[0]["bits_per_byte"] if lines else loss.bits_per_byte
        lines.append(
            {
                "cut": address,
                "activations": activations,
                "cache": cache,
                "bits_per_byte": loss.bits_per_byte,
                "added": loss.bits_per_byte / exact - 1,
                "tokens": loss.tokens,
                "window": loss.window,
            }
        )
        print(
            f"{address}: {activations} activations, {cache} cache: "
            f"{loss.bits_per_byte:.4f} bits per byte, {lines[-1]['added']:+.3%}",
            flush=True,
        )
    return lines


def table(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """A row for each way of rounding, a column for each cut."""
    cuts = list(dict.fromkeys(line["cut"] for line in lines))
    rows = []
    for activations, cache in MODES:
        found = [
            line for line in lines if (line["activations"], line["cache"]) == (activations, cache)
        ]
        exact = (activations, cache) == MODES[0]
        cells = [
            f"{line['bits_per_byte']:.4f}" if exact else f"{line['added']:+.3%}" for line in found
        ]
        rows.append([activations, cache, *cells])
    return {
        "columns": ["activations", "cache", *(f"`{cut}`" for cut in cuts)],
        "align": "ll" + "r" * len(cuts),
        "rows": rows,
        "caption": f"Bits per byte of {lines[0]['tokens']} held-out tokens in windows of "
                   f"{lines[0]['window']}; below the first row, what rounding adds.",
    }  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cuts", nargs="*", default=["b8", "b4", "b3", "b2"])
    parser.add_argument("--threads", type=int)
    parser.add_argument("--artifact", type=Path, help="an artifact of the demo model")
    parser.add_argument("--output", type=Path, default=RESULTS)
    return parser


if __name__ == "__main__":
    main()
