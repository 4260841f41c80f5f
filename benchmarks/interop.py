"""Is a cut the same model elsewhere? Every architecture in transformers and in llama.cpp.

    python benchmarks/interop.py --peer-python PYTHON [--models llama,gemma3] [--shared FOLDER]

Exports cuts of the demo model, of tiny random models of every architecture and, where `--shared`
holds it, of stories260K, and compares token ids, logits and 64 greedy tokens on texts and
conversations, and the perplexity of held-out text, with our engine. Writes `results/interop.json`,
with the table of the how-to page.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from interop_models import ARCHITECTURES, quick_artifact, tiny_checkpoint
from pliant.artifact import Artifact
from pliant.cli.target import perplexity_text
from pliant.data import read_documents
from pliant.errors import PliantError, UnsupportedError
from pliant.export import export_gguf, export_hf, parse_number_type, plan_gguf, plan_hf, storage_of
from pliant.measurement import format_bytes
from pliant.recipes.verify_target import PromptCheck, TargetReport, verify_target

ROOT = Path(__file__).parents[1]
OUTPUT = ROOT / "benchmarks" / "results" / "interop.json"

#: Target, cut and type; `{half}` is one block less at half the width.
CASES = (
    ("hf", "", "fp32"), ("hf", "{half}-b3", "bf16"),
    ("gguf", "", "F32"), ("gguf", "{half}-b3", "exact"), ("gguf", "b4", "Q4_1"),
    ("gguf", "b7", "exact"),
)  # fmt: skip
COLUMNS = ("model", "cut", "target", "stored as", "token ids", "logits differ", "KL, nats",
           "top-1", "perplexity here", "there", "greedy 64", "size", "load, s")  # fmt: skip
#: Held-out text whose perplexity is compared; far from what random models know.
TEXT = ROOT / "models" / "tale-750k" / "heldout.txt"


def checkpoints(names: list[str], shared: Path, folder: Path) -> Iterator[tuple[str, Path]]:
    """Name and checkpoint folder of every model that is here."""
    trained = {"stories260K": shared / "stories260K", "tale-750k": ROOT / "models" / "tale-750k"}
    for name, path in trained.items():
        if (not names or name in names) and path.is_dir():
            yield name, path
    for name in ARCHITECTURES:
        if not names or name in names:
            yield name, tiny_checkpoint(name, folder / name)


def run_case(
    artifact: Artifact, target: str, address: str, kind: str, place: Path, python: str | None
) -> tuple[TargetReport, str, int]:
    """One export and its comparison: the report, how it is stored, and its bytes."""
    if target == "hf":
        export_hf(plan_hf(artifact, address, parse_number_type(kind)), address, place)
        size = sum(path.stat().st_size for path in place.iterdir())
    else:
        export_gguf(plan_gguf(artifact, address, kind), address, place)
        size = place.stat().st_size
    storage = storage_of(target, place)
    peer = python if target == "gguf" else None
    documents = {TEXT.name: read_documents(TEXT)}
    report = verify_target(
        artifact, address, target, place, storage, documents=documents, python=peer
    )
    return report, storage, size


def row(report: TargetReport, storage: str, size: int) -> list[str]:
    """The cells of a comparison."""
    asked = [prompt for prompt in report.prompts if prompt.greedy_asked]
    encoded = [prompt for prompt in report.prompts if prompt.same_ids is not None]
    tokens = sum(prompt.tokens for prompt in report.prompts)
    kl = sum(prompt.kl_nats * prompt.tokens for prompt in report.prompts) / tokens
    top = sum(prompt.top1 * prompt.tokens for prompt in report.prompts) / tokens
    return [
        storage,
        f"{sum(bool(prompt.same_ids) for prompt in encoded)} of {len(encoded)} texts",
        f"{max(prompt.worst for prompt in report.prompts):.2%}",
        f"{kl:.1e}",
        f"{top:.1%}",
        *perplexities(report),
        greedy(asked),
        format_bytes(size),
        f"{report.load_seconds:.2f}",
    ]


def perplexities(report: TargetReport) -> tuple[str, str]:
    """Ours and theirs on the held-out text, the last of what was compared."""
    text = report.prompts[-1]
    return perplexity_text(text.perplexity), perplexity_text(text.their_perplexity)


def greedy(asked: list[PromptCheck]) -> str:
    """How many texts are equal to the end, and how near the choice was where they part."""
    equal = sum(prompt.greedy == prompt.greedy_asked for prompt in asked)
    if equal == len(asked):
        return f"all {equal}"
    gap = max(prompt.greedy_gap for prompt in asked)
    return f"{equal} of {len(asked)}, else {gap:.1%} apart"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer-python", help="an interpreter with llama-cpp-python")
    parser.add_argument("--models", default="", help="comma-separated; all by default")
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared" / "data" / "models")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    rows: list[list[str]] = []
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        names = [name for name in arguments.models.split(",") if name]
        for name, checkpoint in checkpoints(names, arguments.shared, Path(scratch) / "models"):
            artifact = quick_artifact(checkpoint, Path(scratch) / f"{name}.pliant")
            for number, (target, pattern, kind) in enumerate(CASES):
                address = pattern.format(half=f"d{artifact.spec.num_blocks - 1}-w0.5")
                place = Path(scratch) / f"{name}-{number}"
                head = [name, f"`{address or 'full'}`", target]
                try:
                    report, storage, size = run_case(
                        artifact, target, address, kind, place, arguments.peer_python
                    )
                except UnsupportedError as error:
                    rows.append([*head, f"refused: {error}", *[""] * 9])
                except PliantError as error:
                    rows.append([*head, f"failed: {error}", *[""] * 9])
                else:
                    rows.append([*head, *row(report, storage, size)])
                    results.append(
                        {"model": name, "address": address, **msgspec.to_builtins(report)}
                    )
                print(" | ".join(rows[-1]), flush=True)
    table = {"columns": list(COLUMNS), "align": "llllrrrrrrlrr", "rows": rows, "caption": CAPTION}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"table": table, "results": results}, indent=1)
    arguments.output.write_text(text + "\n", encoding="utf-8")


CAPTION = (
    "Random models but the first two; planes rounded to nearest. `logits differ`: RMS over that of "
    "the logits at the worst token. Perplexity is of the first 4096 tokens of "
    "`models/tale-750k/heldout.txt`, in the same windows on both sides. Where greedy texts part, "
    "the largest gap between both choices in our logits is given, over their RMS. "
    "`python benchmarks/interop.py`."
)

if __name__ == "__main__":
    main()
