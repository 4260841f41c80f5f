"""What do adapters lose by being rounded to fp16 in the file and to int8 in the engine?

`python benchmarks/adapter_rounding.py` tunes adapters of `models/tale-750k` for a few steps, as
`shapes.py` does, and writes held-out bits per byte of some shapes with factors as they were tuned,
in fp16, and in int8 with the scales of `runtime/low_rank.py`, to
`benchmarks/results/adapter_rounding.json`. Half a minute; needs the training corpus (`--corpus`).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch

from pliant.adapters import Factors
from pliant.data import Mixture
from pliant.models import ShapeAdapters, Supernet
from pliant.runtime.low_rank import decode_factors, encode_factors
from pliant.shape import SubnetShape
from pliant.tune import Sandwich, ShapeTuner, TuneOptions, named_shapes
from shapes import CORPUS, ROOT
from shapes_runs import Bench, Budget, prepare

RESULTS = ROOT / "benchmarks" / "results" / "adapter_rounding.json"
SHAPES = ("d5-w1", "d4-w0.5", "d3-w0.75", "d1-w0.25")
STEPS, BATCH_TOKENS, RATE, RANK = 30, 256, 0.008, 16


def as_tuned(factors: Factors) -> Factors:
    return factors


def as_int8(factors: Factors) -> Factors:
    return decode_factors(encode_factors(factors))


def tuned(bench: Bench) -> Supernet:
    """The model with adapters that are worth rounding."""
    model = bench.supernet()
    options = TuneOptions(
        steps=STEPS, batch_tokens=BATCH_TOKENS, micro_tokens=BATCH_TOKENS, warmup_steps=2,
        mode="smol", rank=RANK, vector_rate=RATE, anchored=False,
    )  # fmt: skip
    assert options.adapters is not None
    model.adapters = ShapeAdapters.initialized(model.spec, options.adapters, 0)
    space = bench.space()
    ShapeTuner(model, Sandwich(space, 2, 0), Mixture(bench.sources, 0), options).run()
    return model


def rounded(
    model: Supernet, shape: SubnetShape, form: Callable[[Factors], Factors], half: bool
) -> Supernet:
    """The model of a shape whose factors have gone through fp16 and `form`."""
    assert model.adapters is not None
    adapters = ShapeAdapters(model.spec, model.adapters.adapters, model.adapters.stored_tensors())
    if half:
        for name, tensor in adapters.tensors.items():
            if not name.startswith("router"):
                adapters.tensors[name] = tensor.half().float()
    other = Supernet(model.spec, model.weights, model.shape)
    with torch.no_grad():
        for name, (a_RI, b_OR) in adapters.low_rank(shape).items():
            a, b = form(Factors(a_RI.numpy(), b_OR.numpy()))
            other.low_rank = {**other.low_rank, name: (torch.from_numpy(a), torch.from_numpy(b))}
    return other


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, default=CORPUS, help="folder of training texts")
    parser.add_argument("--cache", type=Path, default=ROOT / ".demo" / "shapes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    bench = prepare(Budget(STEPS, BATCH_TOKENS, 1, 24, 8), options.corpus, options.cache)
    plain, model = bench.supernet(), tuned(bench)
    shapes = {named.name: named.shape for named in named_shapes(bench.space())}
    rows = []
    for name in SHAPES:
        shape = shapes[name]
        forms = ((as_tuned, False), (as_tuned, True), (as_int8, True))
        losses = [
            bench.bits_per_byte(rounded(model, shape, form, half), shape) for form, half in forms
        ]
        untuned = bench.bits_per_byte(plain, shape)
        rows.append([name, *(f"{loss:.4f}" for loss in (untuned, *losses))])
        print(*rows[-1], flush=True)
    caption = (
        f"Held-out bits per byte of {bench.checkpoint.folder.name} with adapters of rank {RANK} "
        f"tuned for {STEPS} steps of {BATCH_TOKENS} tokens."
    )
    columns = ["shape", "untuned", "fp32 factors", "fp16", "fp16, then int8"]
    table = {"columns": columns, "align": "lrrrr", "rows": rows, "caption": caption}
    RESULTS.write_text(json.dumps({"table": table}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
