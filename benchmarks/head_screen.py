"""What does screening the head save when tokens are chosen greedily?

`python benchmarks/head_screen.py` writes `benchmarks/results/head_screen.json`: for the demo model,
or any artifact, the share of the head's bytes that `Engine.greedy` reads with each number of planes
to screen with, and the time of a token beside that without a screen. Tokens are those of held-out
text, each step one token, and every chosen one is checked against the argmax of the logits. Some
seconds, and half a minute more where the demo artifact is yet to be built.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from pliant._native import kernels
from pliant.data import read_documents
from pliant.recipes.bench import machine_text
from pliant.recipes.build import build
from pliant.recipes.demo import demo_checkpoint, heldout_text
from pliant.runtime.chunk import Chunk
from pliant.runtime.engine import Engine
from pliant.runtime.text_engine import Pliant, open_artifact

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "head_screen.json"


def chosen(engine: Engine, tokens: NDArray[np.int32]) -> tuple[NDArray[np.int32], float]:
    """The likeliest token behind each, one step at a time, and seconds per token."""
    cache = engine.new_cache(len(tokens))
    start = time.perf_counter()
    found = [
        engine.greedy([Chunk(tokens[place : place + 1], cache)])[0] for place in range(len(tokens))
    ]
    return np.concatenate(found), (time.perf_counter() - start) / len(tokens)


def measured(model: Pliant, cut: str, tokens: NDArray[np.int32]) -> list[dict[str, Any]]:
    """One line for each number of planes to screen with, 0 first."""
    lines: list[dict[str, Any]] = []
    subnet = model.subnet(cut)
    with Engine(model.artifact, subnet, 1) as plain:
        logits = plain.forward_chunk([Chunk(tokens, plain.new_cache(len(tokens)), logits="all")])[0]
    for screen in range(subnet.bits.head):
        with Engine(model.artifact, subnet, 1, head_screen=screen) as engine:
            runs = [chosen(engine, tokens) for _ in range(3)]
            report = engine.screening()
        if not np.array_equal(runs[0][0], logits.argmax(axis=1)):
            raise SystemExit(f"{cut}, {screen} planes: another token than that of the logits.")
        lines.append(
            {
                "cut": cut,
                "head_planes": subnet.bits.head,
                "screen": screen,
                "read": report.read_bytes / report.unscreened_bytes,
                "token_us": 1e6 * min(seconds for _, seconds in runs),
            }
        )
        print(f"{cut}: screen of {screen} planes reads {lines[-1]['read']:.0%} of the head, "
              f"{lines[-1]['token_us']:.1f} us a token", flush=True)  # fmt: skip
    return lines


def table(lines: list[dict[str, Any]], caption: str) -> dict[str, Any]:
    """A row for each cut and number of planes to screen with, 0 for none."""
    rows = [
        [f"`{line['cut']}`", str(line["head_planes"]), str(line["screen"] or "none"),
         f"{line['read']:.0%}", f"{line['token_us']:.0f} us"]
        for line in lines
    ]  # fmt: skip
    columns = ["cut", "planes of the head", "of them to screen with", "of the head read", "a token"]
    return {"columns": columns, "align": "lrrrr", "rows": rows, "caption": caption}


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cuts", nargs="*", default=["b8", "b4"])
    parser.add_argument("--tokens", type=int, default=250)
    parser.add_argument("--artifact", type=Path, help="an artifact of the demo model")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    checkpoint = demo_checkpoint()
    artifact = options.artifact or ROOT / ".demo" / "tale.pliant"
    if not artifact.exists():
        artifact.parent.mkdir(parents=True, exist_ok=True)
        build(checkpoint, artifact, calibration=checkpoint / "calibration.txt")
    text = " ".join(read_documents(heldout_text(checkpoint)))
    with open_artifact(artifact) as model:
        tokens = np.array(model.tokenizer.encode(text[:20_000])[: options.tokens], np.int32)
        lines = [line for cut in options.cuts for line in measured(model, cut, tokens)]
    caption = (
        f"{checkpoint.name}, greedy over {len(tokens)} held-out tokens, 1 thread, kernels "
        f"{kernels.best()}; {machine_text()}."
    )
    results = {
        "kernels": kernels.best(), "model": checkpoint.name, "machine": machine_text(),
        "table": table(lines, caption), "lines": lines,
    }  # fmt: skip
    options.output.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=2) + b"\n")


if __name__ == "__main__":
    main()
