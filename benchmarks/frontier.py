"""Which cut for which size? The frontier of the demo model, every point measured by the engine.

`python benchmarks/frontier.py` writes `benchmarks/results/frontier.json` and the picture
`docs/images/frontier.svg`. Measured are cuts spread over the predicted frontier and, as the
baseline each of them has to beat, the dense shape at every number of planes. Quality is bits per
byte of text that the model was not trained on; speed is decoding of one sequence; memory is
weights, cache of 128 tokens and scratch.
"""

from __future__ import annotations

import argparse
import platform
from pathlib import Path
from typing import Any

import msgspec

from pliant.data import read_documents
from pliant.measurement import format_bytes
from pliant.receipt import Receipt
from pliant.recipes.build import build
from pliant.recipes.demo import demo_checkpoint, heldout_text
from pliant.recipes.fit import offer
from pliant.recipes.measure import measure
from pliant.runtime.text_engine import Pliant, open_artifact
from pliant.search import frontier, spread

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "frontier.json"
PICTURE = ROOT / "docs" / "images" / "frontier.svg"
CONTEXT = 128
POINTS = 16


def main() -> None:
    options = _parser().parse_args()
    checkpoint = demo_checkpoint()
    artifact = options.artifact or ROOT / ".demo" / "tale.pliant"
    if not artifact.exists():
        artifact.parent.mkdir(parents=True, exist_ok=True)
        build(checkpoint, artifact, calibration=checkpoint / "calibration.txt")
    with open_artifact(artifact) as model:
        receipts = measured_frontier(model, heldout_text(checkpoint), options.threads)
    results = {
        "model": checkpoint.name,
        "context": CONTEXT,
        "machine": f"{platform.system()} {platform.machine()}",
        "table": table(receipts),
        "receipts": msgspec.to_builtins(receipts),
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    content = msgspec.json.format(msgspec.json.encode(results), indent=2)
    options.output.write_bytes(content + b"\n")
    draw(receipts, checkpoint.name, options.picture)
    for line in results["table"]["rows"]:
        print("  ".join(line))


def measured_frontier(model: Pliant, text: Path, threads: int | None) -> list[Receipt]:
    """Receipts of spread cuts and of the dense shape at 1 to 8 planes, the smallest first."""
    documents = read_documents(text)
    offered = offer(model, CONTEXT, kv_bits=16)
    cuts = [str(candidate.address) for candidate in spread(offered.frontier, POINTS)]
    dense = [f"b{planes}" for planes in range(1, model.artifact.num_planes + 1)]
    receipts: dict[int, Receipt] = {}
    for address in (*dense, *cuts):
        found = measure(
            model, address, documents, text_name=text.name, context=CONTEXT, threads=threads
        )
        # A cut of the frontier may be the dense shape under a longer name.
        receipts.setdefault(found.weight_bytes, found)
        print(found, flush=True)
    return [receipts[num_bytes] for num_bytes in sorted(receipts)]


def is_dense(receipt: Receipt) -> bool:
    """Whether only bits were cut: the address names planes of the blocks and nothing else."""
    return receipt.address.startswith("b") and "-" not in receipt.address


def table(receipts: list[Receipt]) -> dict[str, Any]:
    """Columns and rows for `benchmarks/tables.py`: the measured frontier, and the dense shape."""
    best = frontier(receipts, lambda item: item.memory_bytes, lambda item: item.bits_per_byte)
    full = max(receipts, key=lambda receipt: receipt.weight_bytes)
    columns = ["cut", "weights", f"memory at {CONTEXT} tokens", "bits/byte", "loss", "token/s", ""]
    rows = []
    for receipt in receipts:
        if receipt not in best and not is_dense(receipt):
            continue
        speed = receipt.speed
        notes = ["frontier"] if receipt in best else []
        notes += ["dense shape"] if is_dense(receipt) else []
        rows.append(
            [
                f"`{receipt.address}`",
                format_bytes(receipt.weight_bytes),
                format_bytes(receipt.memory_bytes),
                f"{receipt.bits_per_byte:.3f}",
                f"{receipt.bits_per_byte / full.bits_per_byte - 1:+.1%}",
                "" if speed is None else f"{speed.median:.0f} [{speed.low:.0f}, {speed.high:.0f}]",
                ", ".join(notes),
            ]
        )
    conditions = receipts[0].conditions
    caption = (
        f"Measured on {conditions.text} ({conditions.tokens:,} tokens), threads: "
        f"{conditions.threads}, {conditions.machine}; token/s is the median [lowest, highest] of "
        "decoding one sequence."
    )
    return {"columns": columns, "align": "lrrrrrl", "rows": rows, "caption": caption}


def draw(receipts: list[Receipt], model: str, path: Path) -> None:
    """Size against quality, the dense shape as a line of its own."""
    import matplotlib as mpl

    mpl.use("svg")
    # Equal figures give equal files.
    mpl.rcParams["svg.hashsalt"] = "pliant"
    import matplotlib.pyplot as plt

    best = frontier(receipts, lambda item: item.memory_bytes, lambda item: item.bits_per_byte)
    figure, axes = plt.subplots(figsize=(8, 4.5))
    others = [item for item in receipts if item not in best and not is_dense(item)]
    dense = [item for item in receipts if is_dense(item)]
    for items, style, label in (
        (best, "o-", "measured frontier"),
        (dense, "s--", "dense shape at fewer bits"),
        (others, ".", "other cuts measured"),
    ):
        sizes = [item.memory_bytes / 1e3 for item in items]
        axes.plot(sizes, [item.bits_per_byte for item in items], style, label=label)
    for place, item in enumerate(best):
        above = place % 2 == 0
        axes.annotate(
            item.address,
            (item.memory_bytes / 1e3, item.bits_per_byte),
            textcoords="offset points",
            xytext=(4, 6 if above else -12),
            fontsize=7,
        )
    axes.set_xlabel(f"memory with {CONTEXT} tokens of cache, kB")
    axes.set_ylabel("bits per byte, held out")
    axes.set_title(f"{model}: every cut is a view of the same file")
    axes.grid(alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--artifact", type=Path, help="measure this one (.demo/tale.pliant)")
    parser.add_argument("--threads", type=int, help="threads of the engine (all cores)")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--picture", type=Path, default=PICTURE)
    return parser


if __name__ == "__main__":
    main()
