"""How good is a prefix of planes? Loss and KL by effective bits, beside dedicated quantizers.

`python benchmarks/bits.py` writes `benchmarks/results/bits.json` and `docs/images/bits.svg`. The
matrices of all blocks are rounded, embedding and head stay dense, so that methods differ in nothing
else. Witnesses are the demo model on its held-out text and, where `--models` has them, really
trained ones of others on text that they wrote themselves (calibration and report from different
seeds). Every calibration seed draws other windows; the report windows are the same.
Shape suffixes: B sequences, T tokens, V vocabulary, O rows, I columns.
"""

from __future__ import annotations

import argparse
import platform
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from bits_peers import Peer
from pliant.bits import EncodedMatrix, ErrorFeedback, UniformCodec
from pliant.calibrate import SHARED_INPUTS, MomentStream, decode_matrix, find_width_orders
from pliant.data import encode_corpus, read_documents, token_windows
from pliant.models import Checkpoint, Supernet
from pliant.models.attention import KeyValueCache
from pliant.recipes.demo import demo_checkpoint, heldout_text
from pliant.recipes.encoding import ROUNDINGS, Rounding, encoded_matrices
from pliant.runtime import Tokenizer

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "bits.json"
PICTURE = ROOT / "docs" / "images" / "bits.svg"
WINDOWS, TOKENS, REPORT_WINDOWS = 64, 256, 24
PLANES = (2, 3, 4, 5, 6, 8)
PEERS = [Peer(method, bits, group) for bits in (2, 3, 4) for method, group in (
    ("rtn", 32), ("rtn", 64), ("rtn", 128), ("gptq", 64), ("gptq", 128), ("awq", 64), ("hqq", 64),
)] + [Peer("gptq", bits, 64) for bits in (5, 6)]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, nargs="*", default=[], help="checkpoint folders")
    parser.add_argument("--roundings", nargs="*", choices=ROUNDINGS, default=list(ROUNDINGS))
    parser.add_argument("--no-peers", action="store_true", help="ours only, for a quick look")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--picture", type=Path, default=PICTURE)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for folder in (demo_checkpoint(), *options.models):
        peers = [] if options.no_peers else PEERS
        for row in measured(folder, range(options.seeds), options.roundings, peers):
            rows.append(row)
            print(f"{row['model']} {row['method']} {row['bits']:.2f} bits: "
                  f"+{row['increase']:.4f} nats, KL {row['kl']:.4f}", flush=True)  # fmt: skip
        # After each model, so that what was measured is kept when the next is stopped.
        write(rows, options)


def write(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """Results, their table, and the picture."""
    summary = summarized(rows)
    results = {
        "windows": WINDOWS, "tokens": TOKENS, "report_windows": REPORT_WINDOWS,
        "seeds": options.seeds, "machine": f"{platform.system()} {platform.machine()}",
        "table": table(summary), "summary": summary,
    }  # fmt: skip
    content = msgspec.json.format(msgspec.json.encode(results), indent=2)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_bytes(content + b"\n")
    draw(summary, options.picture)


def measured(
    folder: Path, seeds: Iterable[int], roundings: list[Rounding], peers: list[Peer]
) -> Iterator[dict[str, Any]]:
    """A row for each seed, method and width of one model."""
    for seed in seeds:
        supernet, calibration_BT, report_BT = witness(folder, seed)
        reference = Reference(supernet, report_BT)
        for method, bits, weights in rounded_models(
            supernet, calibration_BT, roundings, peers, seed
        ):
            model = Supernet(supernet.spec, {**supernet.weights, **weights}, supernet.shape)
            increase, divergence = reference.compare(model)
            yield {"model": folder.name, "method": method, "bits": bits, "seed": seed,
                   "dense": reference.loss, "increase": increase, "kl": divergence}  # fmt: skip


def witness(folder: Path, seed: int) -> tuple[Supernet, torch.Tensor, torch.Tensor]:
    """The ordered model, calibration windows of a seed, and report windows, int64 `[B, T]`."""
    checkpoint = Checkpoint.open(folder)
    supernet = Supernet.from_checkpoint(checkpoint)
    length = min(TOKENS, checkpoint.spec.max_context)
    if folder == demo_checkpoint():
        calibration, report = folder / "calibration.txt", heldout_text(folder)
        tokenizer = Tokenizer.load(folder)
        drawn = []
        for path, count, number in ((calibration, WINDOWS, seed), (report, REPORT_WINDOWS, 0)):
            stream = encode_corpus(
                read_documents(path),
                lambda text: tokenizer.encode(text, add_bos=False),
                tokenizer.start_id,
            )
            drawn.append(token_windows(stream, length, count, number))
        calibration_BT, report_BT = (torch.from_numpy(windows) for windows in drawn)
    else:
        start = checkpoint.config["bos_token_id"]
        calibration_BT = written(supernet, start, WINDOWS, length, seed + 1)
        report_BT = written(supernet, start, REPORT_WINDOWS, length, 0)
    supernet.permute(find_width_orders(supernet, calibration_BT))
    return supernet, calibration_BT, report_BT


@torch.no_grad()
def written(supernet: Supernet, start: int, count: int, length: int, seed: int) -> torch.Tensor:
    """Text of the model itself, sampled at temperature 1 from the start token."""
    generator = torch.Generator().manual_seed(seed)
    cache = KeyValueCache()
    tokens = [torch.full((count, 1), start)]
    for _ in range(length - 1):
        logits_BV = supernet(tokens[-1], None, cache)[:, -1]
        probability_BV = torch.softmax(logits_BV, dim=-1)
        tokens.append(torch.multinomial(probability_BV, 1, generator=generator))
    return torch.cat(tokens, dim=1)


class Reference:
    """Log-probabilities of the dense model on the report windows, and its loss, nats."""

    def __init__(self, supernet: Supernet, tokens_BT: torch.Tensor) -> None:
        self._tokens_BT = tokens_BT
        self._dense = [self._log_probabilities(supernet, batch_BT) for batch_BT in self._batches()]
        self.loss = self._loss(self._dense)

    def compare(self, model: Supernet) -> tuple[float, float]:
        """How much more a token costs than with the dense model, and KL(dense ‖ model), nats."""
        found = [self._log_probabilities(model, batch_BT) for batch_BT in self._batches()]
        divergence = statistics.fmean(
            float((dense.exp() * (dense - other)).sum(-1).mean())
            for dense, other in zip(self._dense, found, strict=True)
        )
        return self._loss(found) - self.loss, divergence

    def _batches(self) -> list[torch.Tensor]:
        return list(torch.split(self._tokens_BT, 8))

    def _loss(self, logs: list[torch.Tensor]) -> float:
        chosen = [log_BTV.gather(-1, batch_BT[:, 1:, None])
                  for log_BTV, batch_BT in zip(logs, self._batches(), strict=True)]  # fmt: skip
        return -float(torch.cat(chosen).mean())

    @torch.no_grad()
    def _log_probabilities(self, model: Supernet, tokens_BT: torch.Tensor) -> torch.Tensor:
        return torch.log_softmax(model(tokens_BT)[:, :-1].double(), dim=-1)


Weights = dict[str, torch.Tensor]


def rounded_models(
    supernet: Supernet,
    tokens_BT: torch.Tensor,
    roundings: list[Rounding],
    offered: list[Peer],
    seed: int,
) -> Iterator[tuple[str, float, Weights]]:
    """Method, effective bits, and the matrices of all blocks as they are after rounding."""
    names = [name for name, shape in supernet.spec.tensors().items()
             if name.startswith("blocks.") and len(shape) == 2]  # fmt: skip
    codec = UniformCodec()
    for rounding in roundings:
        pairs = encoded_matrices(supernet, names, codec, rounding, tokens_BT, seed=seed)
        stored = {name: value for name, value in pairs if isinstance(value, EncodedMatrix)}
        for planes in PLANES:
            weights = {name: torch.from_numpy(decode_matrix(codec, matrix, planes))
                       for name, matrix in stored.items()}  # fmt: skip
            size = sum(m.scales.nbytes + sum(p.nbytes for p in m.planes[:planes])
                       for m in stored.values())  # fmt: skip
            yield f"pliant {rounding}", 8 * size / num_weights(supernet, names), weights
    peers: dict[Peer, Weights] = defaultdict(dict)
    stream = MomentStream(supernet, tokens_BT)
    for block in range(supernet.spec.num_blocks) if offered else ():
        for shared, moment_II in stream.advance(block).items():
            feedback = ErrorFeedback.of(moment_II)
            for name in (f"blocks.{block}.{matrix}" for matrix in SHARED_INPUTS[shared]):
                weight_OI = supernet.weights[name].numpy()
                for peer in offered:
                    rounded_OI = peer.quantize(weight_OI, feedback).astype(np.float32)
                    peers[peer][name] = torch.from_numpy(rounded_OI)
    for peer, weights in peers.items():
        size_bits = sum(w.numel() * peer.effective_bits(w.shape[1]) for w in weights.values())
        yield f"{peer.method} g{peer.group}", size_bits / num_weights(supernet, names), weights


def num_weights(supernet: Supernet, names: Iterable[str]) -> int:
    return sum(supernet.weights[name].numel() for name in names)


def summarized(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean over seeds, and half the range, of each model, method and width."""
    points: dict[tuple[str, str, float], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        points[row["model"], row["method"], round(row["bits"], 3)].append(row)
    return [
        {"model": model, "method": method, "bits": bits,
         "dense": statistics.fmean(row["dense"] for row in found),
         **{key: statistics.fmean(row[key] for row in found) for key in ("increase", "kl")},
         "spread": (max(r["increase"] for r in found) - min(r["increase"] for r in found)) / 2}
        for (model, method, bits), found in points.items()
    ]  # fmt: skip


def table(summary: list[dict[str, Any]]) -> dict[str, Any]:
    """Loss relative to dense; methods as rows, in order of their bits."""
    rows = [
        [point["model"], point["method"], f"{point['bits']:.2f}",
         f"{point['increase'] / point['dense']:+.1%}",
         f"{point['spread'] / point['dense']:.1%}", f"{point['kl']:.4f}"]
        for point in sorted(summary, key=lambda p: (p["model"], p["bits"], p["increase"]))
        if point["bits"] < 5
    ]  # fmt: skip
    columns = ["model", "method", "effective bits", "loss", "± seeds", "KL, nats"]
    return {"columns": columns, "align": "llrrrr", "rows": rows}


def draw(summary: list[dict[str, Any]], path: Path) -> None:
    """KL against effective bits, a panel for each model."""
    import matplotlib.pyplot as plt

    models = list(dict.fromkeys(point["model"] for point in summary))
    figure, axes = plt.subplots(1, len(models), figsize=(5.5 * len(models), 4), squeeze=False)
    for model, axis in zip(models, axes[0], strict=True):
        lines: Mapping[str, list[tuple[float, float]]] = defaultdict(list)
        for point in summary:
            if point["model"] == model and point["bits"] < 7:
                lines[point["method"]].append((point["bits"], point["kl"]))
        for method, values in lines.items():
            is_ours = method.startswith("pliant")
            axis.plot(*zip(*sorted(values), strict=True), label=method, marker="o", markersize=3,
                      linewidth=2.2 if is_ours else 0.9)  # fmt: skip
        axis.set(title=model, xlabel="effective bits of block matrices", yscale="log",
                 ylabel="KL to dense, nats")  # fmt: skip
        axis.legend(fontsize=7)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
