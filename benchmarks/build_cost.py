"""What does rounding a model cost? Time and memory without data, and of error feedback by size.

    python benchmarks/build_cost.py [--data-free SHAPE] [--sizes 256,384,512]

writes `benchmarks/results/build_cost.json`. Models are random, of real shapes. Error feedback is
foretold from a second of its parts, then run; its time a weight shows whether it is linear. With
`--data-free` a model of 1.1 billion parameters is built without data by a process of its own,
which needs 6 GB of disk and some minutes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from interop_models import write_tokenizer
from pliant.bits import UniformCodec
from pliant.measurement import format_bytes, format_seconds
from pliant.models import Supernet, checkpoint_names
from pliant.recipes.encoding import encoded_matrices
from pliant.recipes.rounding_time import feedback_seconds
from pliant.spec import ModelSpec, read_spec

RESULTS = Path(__file__).parent / "results" / "build_cost.json"
BLOCKS, WINDOWS, TOKENS = 2, 32, 128
#: Shapes of the data-free build: that of TinyLlama, and a small one for a try.
SHAPES = {
    "1B": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22,
           "num_attention_heads": 32, "num_key_value_heads": 4, "vocab_size": 32000},
    "try": {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 4,
            "num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": 32000},
}  # fmt: skip
COMMON = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "rms_norm_eps": 1e-5,
    "max_position_embeddings": 2048, "hidden_act": "silu", "tie_word_embeddings": False,
    "bos_token_id": 0, "eos_token_id": 2, "rope_theta": 10_000.0,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-free", choices=SHAPES)
    parser.add_argument("--sizes", default="256,384,512", help="hidden sizes of error feedback")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    rows = []
    for hidden in map(int, options.sizes.split(",") if options.sizes else []):
        rows.append(feedback_row(hidden))
        print("  ".join(rows[-1]), flush=True)
    if options.data_free:
        rows.append(data_free_row(SHAPES[options.data_free]))
        print("  ".join(rows[-1]), flush=True)
    table = {
        "columns": ["weights", "rounding", "foretold", "took", "CPU a weight", "announced peak",
                    "measured peak"],
        "align": "rlrrrrr",
        "rows": rows,
        "caption": f"Random weights, {torch.get_num_threads()} threads. Error feedback: two blocks "
        f"and {WINDOWS * TOKENS:,} tokens, rounding alone; data-free: a whole build.",
    }  # fmt: skip
    options.output.write_text(json.dumps({"table": table}, indent=2) + "\n", encoding="utf-8")


def feedback_row(hidden: int) -> list[str]:
    """Error feedback over the blocks of a random model: foretold and measured."""
    spec = read_spec(config({
        "hidden_size": hidden, "intermediate_size": 4 * hidden, "num_hidden_layers": BLOCKS,
        "num_attention_heads": hidden // 64, "num_key_value_heads": hidden // 128,
        "vocab_size": 512,
    }))  # fmt: skip
    supernet = random_model(spec)
    generator = torch.Generator().manual_seed(0)
    tokens_BT = torch.randint(0, spec.vocab_size, (WINDOWS, TOKENS), generator=generator)
    names = [name for name in supernet.weights if name.startswith("blocks.")]
    foretold = feedback_seconds(spec, WINDOWS, TOKENS, 8)
    started, worked = time.perf_counter(), time.process_time()
    for _ in encoded_matrices(supernet, names, UniformCodec(), "feedback", tokens_BT):
        pass
    taken, worked = time.perf_counter() - started, time.process_time() - worked
    weights = spec.num_blocks * spec.block_weights(spec.num_groups, spec.ffn_size)
    return [f"{weights:,}", "feedback", format_seconds(foretold), format_seconds(taken),
            f"{worked / weights * 1e6:.2f} µs", "", ""]  # fmt: skip


def data_free_row(shape: dict[str, int]) -> list[str]:
    """A build without data, from a checkpoint on disk, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = random_checkpoint(Path(folder) / "random", config(shape))
        command = [sys.executable, "-m", "pliant.cli", "build", str(checkpoint), "-o",
                   str(Path(folder) / "random.pliant"), "--data-free", "--json"]  # fmt: skip
        ran = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    found = json.loads(ran.stdout)
    count, seconds = found["num_parameters"], found["seconds"]
    return [f"{count:,}", "nearest, data-free", "", format_seconds(seconds),
            "", format_bytes(found["predicted_bytes"]),
            format_bytes(found["peak_bytes"])]  # fmt: skip


def config(shape: dict[str, int]) -> dict[str, Any]:
    """A config.json of a Llama of these sizes."""
    return {**COMMON, **shape, "head_dim": shape["hidden_size"] // shape["num_attention_heads"]}


def random_model(spec: ModelSpec) -> Supernet:
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: torch.randn(shape, generator=generator) * shape[-1] ** -0.5
        if len(shape) == 2
        else torch.ones(shape)
        for name, shape in spec.tensors().items()
    }
    return Supernet.from_tensors(spec, weights)


def random_checkpoint(folder: Path, fields: dict[str, Any]) -> Path:
    """A checkpoint in bf16, a file for each unit so that it never is in memory whole."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(fields), encoding="utf-8")
    write_tokenizer(folder)
    spec = read_spec(fields)
    names = checkpoint_names(spec)
    files: dict[str, dict[str, torch.Tensor]] = {}
    generator = torch.Generator().manual_seed(0)
    index = {}
    for name, shape in spec.tensors().items():
        file = f"model-{'-'.join(name.split('.')[:2])}.safetensors"
        if files and file not in files:
            _flush(folder, files)
        weight = torch.randn(shape, generator=generator) * 0.02 if len(shape) == 2 else 1.0
        tensor = torch.as_tensor(weight).expand(shape).to(torch.bfloat16).contiguous()
        files.setdefault(file, {})[names[name]] = tensor
        index[names[name]] = file
    _flush(folder, files)
    text = json.dumps({"metadata": {}, "weight_map": index})
    (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")
    return folder


def _flush(folder: Path, files: dict[str, dict[str, torch.Tensor]]) -> None:
    for file, tensors in files.items():
        save_file(tensors, folder / file)
    files.clear()


if __name__ == "__main__":
    main()
