"""What do caches of few bits cost in quality, and what do they save in bytes and time?

`python benchmarks/kv_bits.py` writes `benchmarks/results/kv_bits.json`. Loss: bits per byte of
held-out text by the engine, all planes and float32 activations, so that nothing but the cache
differs, and the KL to the same engine with a float32 cache; windows are the model's whole context
(256 tokens for the demo model, so that entries leave the cache's window after 64 to 128 of them;
other models of `--models`, checkpoint folders, read texts of their own of 512 tokens). Ablation:
the same rounding with keys that share a scale along channels, as values do, in the supernet.
Speed: a random model of Qwen2.5-0.5B's shape, 4 planes, decoding behind contexts of growing length;
bytes are those of the cache. About 4 minutes; `--only loss` or `--only speed` takes the half.
Shape suffixes as in models/attention.py.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from bits import witness
from pliant._native import kernels
from pliant.bits import UniformCodec
from pliant.bits.cache import CACHE_UNIT, CacheFormat, round_values
from pliant.evaluate.divergence import kl_nats
from pliant.models import Supernet, attention, supernet
from pliant.recipes.bench import machine_text
from pliant.recipes.demo import demo_checkpoint
from pliant.runtime.chunk import Chunk
from pliant.runtime.engine import Engine
from pliant.subnet import Subnet
from random_bits import RandomBits, llama

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "kv_bits.json"
FORMATS = [CacheFormat(bits=bits) for bits in (32, 16, 8)] + [
    CacheFormat(bits=bits, window=window) for bits in (4, 3, 2) for window in (0, 64, 128)
]
SPEED_FORMATS = [CacheFormat(bits=bits) for bits in (16, 8, 4, 3, 2)]
CONTEXTS = (1024, 4096, 8192)
QWEN = llama(vocab_size=151_936, hidden_size=896, num_blocks=24, num_heads=14, num_groups=2,
             head_dim=64, ffn_size=4864, max_context=2**14)  # fmt: skip


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, nargs="*", default=[], help="checkpoint folders")
    parser.add_argument("--windows", type=int, default=24, help="windows of text of each model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--contexts", type=int, nargs="+", default=CONTEXTS)
    parser.add_argument("--only", choices=("loss", "speed"))
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    kept = msgspec.json.decode(options.output.read_bytes()) if options.output.exists() else {}
    losses, speeds = kept.get("losses", []), kept.get("speeds", [])
    if options.only != "speed":
        losses = [line for folder in (demo_checkpoint(), *options.models)
                  for line in quality(folder, options.windows)]  # fmt: skip
    if options.only != "loss":
        speeds = list(speed(options.threads, options.runs, sorted(options.contexts)))
    results = {
        "machine": machine_text(), "kernels": kernels.best(), "losses": losses, "speeds": speeds,
        "tables": {"loss": loss_table(losses), "speed": speed_table(speeds, options.threads)},
    }  # fmt: skip
    options.output.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=2) + b"\n")


class EncodedWeights:
    """What an engine reads of an artifact: the weights of a supernet in eight planes."""

    def __init__(self, dense: Supernet) -> None:
        self.spec = dense.spec
        self._weights = {name: tensor.float().numpy() for name, tensor in dense.weights.items()}
        self._encoded = {name: UniformCodec().encode(weight)
                         for name, weight in self._weights.items() if weight.ndim == 2}  # fmt: skip

    def planes(self, name: str) -> list[Any]:
        """All eight planes of a matrix."""
        return self._encoded[name].planes

    def scales(self, name: str) -> Any:
        """Its scales."""
        return self._encoded[name].scales

    def vector(self, name: str) -> Any:
        """A norm."""
        return self._weights[name]


def quality(folder: Path, count: int) -> Iterator[dict[str, Any]]:
    """A line for each format of one model, and for the ablation."""
    dense, _, report_BT = witness(folder, 0)
    tokens_BT = report_BT[:count].numpy().astype(np.int32)
    head_dim = dense.spec.head_dim
    exact: list[Any] = []
    weights, subnet = EncodedWeights(dense), Subnet.full(dense.spec, 8)
    for form in FORMATS:
        with Engine(weights, subnet, 1, "float32", form.type, cache_window=form.window) as engine:
            found = [_logits(engine, row_T) for row_T in tokens_BT]
        exact = exact or found
        yield _line(folder.name, str(form), form.effective_bits(head_dim), tokens_BT, exact, found)
    exact = [_supernet_logits(dense, row_T, None) for row_T in tokens_BT]
    for form in FORMATS:
        if form.is_coded and form.window == 64:
            found = [_supernet_logits(dense, row_T, form) for row_T in tokens_BT]
            yield _line(folder.name, f"{form}, keys by token", form.effective_bits(head_dim),
                        tokens_BT, exact, found)  # fmt: skip


def _line(
    model: str, name: str, bits: float, tokens_BT: Any, exact: list[Any], found: list[Any]
) -> dict[str, Any]:
    loss, dense = (
        float(
            np.mean([_nats(logits, row_T) for logits, row_T in zip(rows, tokens_BT, strict=True)])
        )
        for rows in (found, exact)
    )
    nats = np.concatenate([kl_nats(e, f) for e, f in zip(exact, found, strict=True)])
    line = {
        "model": model, "cache": name, "effective_bits": bits, "nats_per_token": loss,
        "increase": loss / dense - 1, "kl_nats": float(np.mean(nats)),
        "tokens": int(tokens_BT.size), "context": int(tokens_BT.shape[1]),
    }  # fmt: skip
    print(f"{model} {name}: {line['increase']:+.3%}, KL {line['kl_nats']:.5f}", flush=True)
    return line


def _logits(engine: Engine, row_T: Any) -> Any:
    return engine.forward_chunk([Chunk(row_T, engine.new_cache(row_T.size), logits="all")])[0]


def _nats(logits_TV: Any, row_T: Any) -> float:
    log_TV = torch.log_softmax(torch.from_numpy(np.array(logits_TV[:-1])), dim=-1)
    return -float(log_TV[torch.arange(len(row_T) - 1), torch.from_numpy(row_T[1:]).long()].mean())


@torch.no_grad()
def _supernet_logits(model: Supernet, row_T: Any, form: CacheFormat | None) -> Any:
    """Logits of the supernet; with a format, keys and values rounded by token behind its window."""
    plain = attention.attend

    def rounded(query: Any, key_BGSH: Any, value_BGSH: Any, *rest: Any) -> torch.Tensor:
        assert form is not None
        size, parts = key_BGSH.shape[2], []
        for begin in range(0, size, CACHE_UNIT):  # queries of a unit see the same codes
            end, folded = min(size, begin + CACHE_UNIT), form.folded(begin)
            held = [x[:, :, :end].clone() for x in (key_BGSH, value_BGSH)]
            for x_BGSH in held if folded else ():
                for group in range(x_BGSH.shape[1]):
                    codes = round_values(x_BGSH[0, group, :folded].numpy(), form.bits)
                    x_BGSH[0, group, :folded] = torch.from_numpy(codes)
            parts.append(plain(query[:, :, begin:end], *held, *rest))
        return torch.cat(parts, dim=2)

    setattr(supernet, "attend", rounded if form else plain)  # noqa: B010
    try:
        return model(torch.from_numpy(row_T)[None].long())[0].numpy()
    finally:
        setattr(supernet, "attend", plain)  # noqa: B010


def speed(threads: int, runs: int, contexts: Sequence[int]) -> Iterator[dict[str, Any]]:
    """A line for each format and context."""
    subnet, weights = Subnet.full(QWEN, 4), RandomBits(QWEN)
    for form in SPEED_FORMATS:
        with Engine(weights, subnet, threads, cache_type=form.type) as engine:
            cache = engine.new_cache(contexts[-1] + runs + 1)
            random = np.random.default_rng(0)
            for context in contexts:
                fill = random.integers(0, 1000, context - cache.length, np.int32)
                engine.forward_chunk([Chunk(fill, cache, logits="none")])
                seconds = []
                for _ in range(runs):
                    start = time.perf_counter()
                    engine.forward_chunk([Chunk(np.ones(1, np.int32), cache)])
                    seconds.append(time.perf_counter() - start)
                cache.truncate(context)
                line = {
                    "cache": form.type, "context": context, "threads": threads,
                    "cache_bytes": engine.sequence_cache.num_bytes(context),
                    "token_ms": 1e3 * float(np.median(seconds)),
                    "fastest_ms": 1e3 * min(seconds),
                }  # fmt: skip
                print(f"{form.type} {context}: {line['token_ms']:.2f} ms", flush=True)
                yield line


def loss_table(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """A row for each format, two columns for each model."""
    models = list(dict.fromkeys(line["model"] for line in lines))
    names = list(dict.fromkeys(line["cache"] for line in lines))
    rows = []
    for name in names:
        found = {line["model"]: line for line in lines if line["cache"] == name}
        cells = [f"{next(iter(found.values()))['effective_bits']:.1f}"]
        for model in models:
            line = found.get(model)
            cells += [f"{line['increase']:+.2%}", f"{line['kl_nats']:.4f}"] if line else ["", ""]
        rows.append([name, *cells])
    columns = [part for model in models for part in (f"{model}, loss", "KL, nats")]
    contexts = ", ".join(f"{line['model']} {line['context']}" for line in lines
                         if line["cache"] == names[0])  # fmt: skip
    return {
        "columns": ["cache", "bits a value", *columns], "align": "lr" + "rr" * len(models),
        "rows": rows, "caption": f"Against a float32 cache; tokens of context: {contexts}.",
    }  # fmt: skip


def speed_table(lines: list[dict[str, Any]], threads: int) -> dict[str, Any]:
    """A row for each format, bytes at the longest context, and token/s behind each."""
    contexts = sorted({line["context"] for line in lines})
    rows = []
    for name in dict.fromkeys(line["cache"] for line in lines):
        found = [line for line in lines if line["cache"] == name]
        rows.append([name, f"{found[-1]['cache_bytes'] / 2**20:.1f} MiB",
                     *(f"{1e3 / line['token_ms']:.1f}" for line in found)])  # fmt: skip
    return {
        "columns": ["cache", "bytes at the longest", *(f"token/s behind {c}" for c in contexts)],
        "align": "lr" + "r" * len(contexts), "rows": rows,
        "caption": f"Qwen2.5-0.5B's shape with random weights, 4 planes, {threads} threads.",
    }  # fmt: skip


if __name__ == "__main__":
    main()
