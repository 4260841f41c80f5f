"""Damage files of other projects that a build reads, in thousands of ways, and read each.

    python tests/fuzz/fuzz_imports.py --mutations 20000 --jobs 2
    python tests/fuzz/fuzz_imports.py --replay 4711

GGUF files, those of llama2.c, Hugging Face folders and adapters of PEFT. As `fuzz_artifact.py`
has it: allowed are success and a `PliantError`.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "artifact")]

from fuzz_artifact import refused, run_from_command_line  # noqa: E402
from import_specimens import Fields, gguf_file, gguf_metadata, llama2c_files, lora_folder  # noqa: E402
from mutations import mutate  # noqa: E402

#: What a number that says a size or a kind is set to.
NUMBERS = [0, 1, 2, 3, 7, 8, 9, 10, 11, 12, 30, 31, 32, 64, 255, 256, 65_535, 1 << 20, 1 << 24,
           (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 33, 1 << 40, (1 << 53) + 1, 1 << 60,
           (1 << 63) - 1, 1 << 63, (1 << 64) - 1]  # fmt: skip


#: Values of metadata and texts of tokens that nobody writes.
VALUES = [0, 1, 3, -1, 65, 1 << 20, 1 << 31, 1 << 62, 0.5, float("nan"), float("inf"), True, "",
          "x", "gpt2", "none", [], [1], [0.5], ["a"], [True]]  # fmt: skip
TOKENS = ["", " ", "$A", "$A:1", "<s> <s>", "a:9", "\0", "<0xFF>", "a", "\u2028", "x" * 3000]


def odd_metadata(metadata: dict[str, Any], source: random.Random) -> str:
    """Change a value, its type, or one entry of a list; says which."""
    key = source.choice(list(metadata))
    value = metadata[key]
    match source.randrange(4):
        case 0:
            del metadata[key]
        case 1 if isinstance(value, list):
            metadata[key] = source.choice((value[:-1], [*value, value[0]], 300 * value))
        case 2 if isinstance(value, list):
            odd = {str: TOKENS, int: [-1, 0, 7, 1 << 30], float: [float("nan"), -1e38]}
            changed = [*value]
            changed[source.randrange(len(value))] = source.choice(odd[type(value[0])])
            metadata[key] = changed
        case _:
            metadata[key] = source.choice(VALUES)
    return key


def read_checkpoint(folder: Path) -> None:
    """Open a Hugging Face folder and read all of it."""
    from pliant.models import Checkpoint
    from pliant.runtime import Tokenizer

    checkpoint = Checkpoint.open(str(folder))
    for name in checkpoint.spec.tensors():
        checkpoint.tensor(name)
    Tokenizer.load(folder).encode("a ab")


class ImportWorkplace:
    """Whole files of each kind and a folder in which copies of them are damaged."""

    def __init__(self, root: Path) -> None:
        from pliant.recipes.imports import gguf_folder

        self.root = root
        self.fields: dict[str, Fields] = {}
        for name, by_scores in (("scores", True), ("bytes", False)):
            folder = root / name
            folder.mkdir()
            self.fields[name] = gguf_file(folder / "model.gguf", gguf_metadata(by_scores))
        (root / "llama2c").mkdir()
        self.fields["llama2c"] = llama2c_files(root / "llama2c" / "model.bin")
        gguf_folder(root / "scores" / "model.gguf", root / "checkpoint")
        lora_folder(root / "lora")
        for kind in ("checkpoint", "lora"):  # loads what they need before any clock runs
            self.reader(kind, root / kind, root / "made")()
        self.kinds = ("scores", "bytes", "llama2c", "checkpoint", "lora")

    def clean(self, process: int) -> None:
        """Remove what a process left."""
        for name in ("damaged", "made"):
            shutil.rmtree(self.root / f"{name}-{process}", ignore_errors=True)

    def reader(self, kind: str, folder: Path, made: Path) -> Callable[[], object]:
        """What reads a damaged copy."""
        from pliant.recipes.imports import gguf_folder, llama2c_folder

        match kind:
            case "scores" | "bytes":
                return lambda: gguf_folder(folder / "model.gguf", made)
            case "llama2c":
                return lambda: llama2c_folder(folder / "model.bin", made)
            case "lora":
                from pliant.recipes.imports.lora import merged_folder

                return lambda: merged_folder(str(self.root / "checkpoint"), folder, made)
            case _:
                return lambda: read_checkpoint(folder)

    def damage(self, kind: str, folder: Path, source: random.Random) -> str:
        """Set numbers of the format, or damage any byte; says how."""
        fields = self.fields.get(kind)
        if fields is None or source.random() < 0.4:
            return mutate(folder, source)
        file = next(iter(sorted(folder.glob("model.*"))))
        if file.suffix == ".gguf" and source.random() < 0.5:
            metadata = gguf_metadata(kind == "scores")
            keys = [odd_metadata(metadata, source) for _ in range(source.choice((1, 1, 2)))]
            file.unlink()
            gguf_file(file, metadata)
            return ", ".join(keys)
        content, done = bytearray(fields.content), []
        for _ in range(source.choice((1, 1, 1, 2, 3))):
            place, size = source.choice(fields.places)
            old = int.from_bytes(content[place : place + size], "little")
            value = source.choice((*NUMBERS, old - 1, old + 1, 2 * old)) % (1 << 8 * size)
            content[place : place + size] = value.to_bytes(size, "little")
            done.append(f"byte {place}: {old} -> {value}")
        file.unlink()
        file.write_bytes(content)
        return "; ".join(done)

    def run(self, number: int) -> tuple[str, str]:
        """Mutation `number`: its outcome, and how which file was damaged."""
        process = os.getpid()
        self.clean(process)
        folder, made = self.root / f"damaged-{process}", self.root / f"made-{process}"
        kind = self.kinds[number % len(self.kinds)]
        shutil.copytree(self.root / kind, folder, copy_function=os.link)
        damage = f"{kind}: {self.damage(kind, folder, random.Random(number))}"
        try:
            return (
                "refused at open" if refused(self.reader(kind, folder, made)) else "ran"
            ), damage
        except Exception:
            traceback.print_exc()
            return "FAILED", damage


if __name__ == "__main__":
    sys.exit(run_from_command_line(__doc__, lambda root, native: ImportWorkplace(root)))
