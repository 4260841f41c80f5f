"""`python -m pliant.recipes.demo`: the whole story on the model that comes with the repository.

One checkpoint becomes one file; its frontier is measured; the same file is fitted to three budgets
and writes a paragraph in each; and the two promises of a cut, that it takes no time and no space,
are measured.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from pliant.data import read_documents
from pliant.errors import CheckpointError
from pliant.measurement import (
    Measurement,
    format_bytes,
    format_seconds,
    peak_memory_bytes,
    repeat,
)
from pliant.recipes.build import build
from pliant.recipes.fit import Offer, fit, offer
from pliant.recipes.measure import excerpt, largest_member_bytes, measure
from pliant.runtime.text_engine import Pliant, open_artifact
from pliant.search import Budget, spread

ROOT = Path(__file__).parents[3]
#: Budgets as parts of the memory of the full model at 8 planes.
BUDGETS = (0.8, 0.55, 0.4)
#: Points of the frontier that are measured.
POINTS = 8
#: Bytes of held-out text for every measurement of quality: a few thousand tokens.
TEXT_BYTES = 20_000
#: Tokens of cache that every memory figure pays for.
CONTEXT = 128
PROMPT = "Once upon a time there was a little girl who"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; returns 0."""
    options = _parser().parse_args(arguments)
    started = time.monotonic()
    checkpoint = options.checkpoint or demo_checkpoint()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    _title(f"1. One file: {checkpoint.name} becomes {options.output.name}")
    calibration = checkpoint / "calibration.txt"
    receipt = build(
        checkpoint,
        options.output,
        calibration=calibration if calibration.exists() else None,
        replace=True,
        progress=_Ticker(),
    )
    print(receipt)
    with open_artifact(options.output) as model:
        documents = excerpt(read_documents(heldout_text(checkpoint)), TEXT_BYTES)
        offered = offer(model, CONTEXT)
        _show_frontier(model, offered, documents, options.threads)
        _show_fits(model, offered, documents, options.threads)
        _show_promises(model, options.threads)
    print(
        f"\nAll of it took {format_seconds(time.monotonic() - started)} and "
        f"{format_bytes(peak_memory_bytes())} of memory at most. "
        f"Go on with: pliant run {options.output}@b4 {PROMPT!r}"
    )
    return 0


def demo_checkpoint() -> Path:
    """The model in `models/`; the largest, should there be several."""
    folders = [path.parent for path in (ROOT / "models").glob("tale-*/model.safetensors")]
    if not folders:
        raise CheckpointError(
            f"There is no model in {ROOT / 'models'}; run the demo from a clone of the repository, "
            "or give a checkpoint folder."
        )
    return max(folders, key=lambda folder: (folder / "model.safetensors").stat().st_size)


def heldout_text(checkpoint: Path) -> Path:
    """Text the model was not trained on: what lies beside it, or the demo model's."""
    own = checkpoint / "heldout.txt"
    return own if own.exists() else demo_checkpoint() / "heldout.txt"


def _show_frontier(
    model: Pliant, offered: Offer, documents: Sequence[str], threads: int | None
) -> None:
    addresses = [str(candidate.address) for candidate in spread(offered.frontier, POINTS)]
    _title(f"2. Every device: {len(offered.candidates)} cuts, {len(addresses)} of them measured")
    receipts = [
        measure(
            model, address, documents, text_name="heldout.txt", context=CONTEXT, threads=threads
        )
        for address in addresses
    ]
    _table(
        ("cut", "weights", f"memory at {CONTEXT}", "bits/byte", "token/s"),
        (
            (
                receipt.address,
                format_bytes(receipt.weight_bytes),
                format_bytes(receipt.memory_bytes),
                f"{receipt.bits_per_byte:.3f}",
                _plain(receipt.speed),
            )
            for receipt in receipts
        ),
    )


def _show_fits(
    model: Pliant, offered: Offer, documents: Sequence[str], threads: int | None
) -> None:
    full = max(candidate.memory_bytes for candidate in offered.candidates)
    _title("3. Every budget: the same file, fitted three times")
    for part in BUDGETS:
        budget = Budget(memory_bytes=int(round(part * full, -4)))
        found = fit(model, budget, documents, context=CONTEXT, threads=threads)
        chosen = found.search.chosen
        loss = chosen.loss / found.dense_bits_per_byte - 1
        print(
            f"\n{format_bytes(budget.memory_bytes)}: {chosen.candidate.address} needs "
            f"{format_bytes(chosen.candidate.memory_bytes)} and loses {loss:+.1%} "
            f"({chosen.loss:.3f} bits/byte)"
        )
        with model.engine(chosen.candidate.subnet, threads=threads) as engine:
            written = engine.generate(PROMPT, max_tokens=90, temperature=0.7, top_p=0.9, seed=1)
        print("  " + f"{PROMPT}{written.text}".strip().replace("\n", "\n  "))


def _show_promises(model: Pliant, threads: int | None) -> None:
    artifact = model.artifact
    depth = min(artifact.depth_path())

    def cut_seconds() -> float:
        """From the address to an engine that could run."""
        start = time.perf_counter()
        with model.engine(f"d{depth}-w0.5-b3", threads=threads):
            return 1e3 * (time.perf_counter() - start)

    ratio = artifact.num_bytes / largest_member_bytes(artifact)
    _title("4. No cost: a cut is pointer arithmetic over the same bytes")
    print(f"{repeat(cut_seconds, 'ms', 9, 'cut')} (goal: below 50 ms)")
    print(
        f"artifact {format_bytes(artifact.num_bytes)} = {ratio:.3f} x the full model with config "
        "and tokenizer (goal: at most 1.06)"
    )


def _plain(speed: Measurement | None) -> str:
    return "" if speed is None else f"{speed.median:.0f} [{speed.low:.0f}, {speed.high:.0f}]"


def _title(text: str) -> None:
    print(f"\n{text}\n{'-' * len(text)}", flush=True)


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows under their columns, the first aligned left and the others right."""
    lines = [columns, *rows]
    widths = [max(len(line[place]) for line in lines) for place in range(len(columns))]
    for line in lines:
        cells = [line[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        print("  ".join(cells))


class _Ticker:
    """Progress as one line per stage on stderr."""

    def __init__(self) -> None:
        self._stage = ""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Name the stage when it begins."""
        if stage != self._stage:
            self._stage = stage
            print(f"  {stage} ...", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pliant.recipes.demo", description=__doc__)
    parser.add_argument("--checkpoint", type=Path, help="a Hugging Face folder (models/tale-*)")
    parser.add_argument("--output", type=Path, default=ROOT / ".demo" / "tale.pliant")
    parser.add_argument("--threads", type=int, help="threads of the engine (all cores)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
