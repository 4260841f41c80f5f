"""Does a build stay within `--max-ram`? Peak resident memory of builds under several limits.

`python benchmarks/build_memory.py` writes `benchmarks/results/build_memory.json`. The model has
random weights and a real shape (32 M parameters in eight blocks), so that weights and the moments
of error feedback are much of what memory goes to. Each build is a process of its own and reports
the peak of its resident memory; all of them have to give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from pliant.measurement import format_bytes, format_seconds
from pliant.models import checkpoint_names
from pliant.recipes.demo import demo_checkpoint
from pliant.spec import read_spec

RESULTS = Path(__file__).parent / "results" / "build_memory.json"
LIMITS = (None, "960MB")
CONFIG = {
    "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 8,
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64,
}  # fmt: skip

BUILD = """
import json, sys
from pliant.recipes.build import build
from pliant.recipes.build_options import BuildOptions
options = BuildOptions(windows=32, window_tokens=64, min_blocks=7, depth_methods=("single-drop",))
receipt = build(sys.argv[1], sys.argv[2], max_ram=sys.argv[3] or None, options=options)
print(json.dumps({"seconds": receipt.seconds, "peak": receipt.peak_bytes,
                  "predicted": receipt.predicted_bytes, "parameters": receipt.num_parameters}))
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = random_checkpoint(Path(folder) / "random")
        rows, digests = [], set()
        for limit in LIMITS:
            output = Path(folder) / "random.pliant"
            command = [sys.executable, "-c", BUILD, str(checkpoint), str(output), limit or ""]
            found = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
            digests.add(digest(output))
            shutil.rmtree(output)
            rows.append(
                [
                    limit or "none",
                    format_bytes(found["predicted"]),
                    format_bytes(found["peak"]),
                    format_seconds(found["seconds"]),
                ]
            )
            print("  ".join(rows[-1]), flush=True)
    if len(digests) != 1:
        raise SystemExit("Builds under different limits gave different artifacts.")
    caption = (
        f"{found['parameters']:,} random parameters; every row gave the same bytes. Threads: "
        f"{torch.get_num_threads()}."
    )
    table = {
        "columns": ["`--max-ram`", "announced peak", "measured peak", "time"],
        "align": "lrrr",
        "rows": rows,
        "caption": caption,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"table": table}, indent=2) + "\n", encoding="utf-8")


def random_checkpoint(folder: Path) -> Path:
    """A checkpoint of the demo model's vocabulary and tokenizer with a larger body."""
    shutil.copytree(demo_checkpoint(), folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8")) | CONFIG
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    spec = read_spec(config)
    names = checkpoint_names(spec)
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, shape in spec.tensors().items():
        weight = torch.randn(shape, generator=generator) * 0.02 if len(shape) == 2 else 1.0
        tensors[names[name]] = torch.as_tensor(weight).expand(shape).to(torch.bfloat16).contiguous()
    save_file(tensors, folder / "model.safetensors")
    return folder


def digest(artifact: Path) -> str:
    """One hash of all files of an artifact."""
    total = hashlib.sha256()
    for path in sorted(artifact.rglob("*")):
        if path.is_file():
            total.update(path.name.encode() + path.read_bytes())
    return total.hexdigest()


if __name__ == "__main__":
    main()
