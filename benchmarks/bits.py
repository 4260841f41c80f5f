"""How good is a prefix of planes? Loss and KL by effective bits, beside dedicated quantizers.

`python benchmarks/bits.py` writes `benchmarks/results/bits.json` and `docs/images/bits.svg`. The
matrices of all blocks are rounded, embedding and head stay dense, so that methods differ in nothing
else. With `--peer-python` llama.cpp's block types stand beside them. Witnesses are the demo model
on its held-out text and, where `--models` has them, really trained ones of others on text that they
wrote themselves (calibration and report from different seeds). Every calibration seed draws other
windows; the report windows are the same.
Shape suffixes: B sequences, T tokens, V vocabulary, O rows, I columns.
"""

from __future__ import annotations

import argparse
import platform
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from bits_llama_cpp import quantized_by_llama_cpp
from bits_mixed import mixed_models
from bits_peers import Peer
from bits_report import draw, summarized, table, widths_table
from pliant.bits import EncodedMatrix, ErrorFeedback, UniformCodec
from pliant.calibrate import (
    SHARED_INPUTS,
    TRANSFORMS,
    MomentStream,
    decode_matrix,
    find_width_orders,
)
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
#: Windows that planes are dealt out by, of seeds that neither rounding nor the report draws.
CHOICE_WINDOWS, CHOICE_SEED = 4, 1000
PLANES = (2, 3, 4, 5, 6, 8)
PEERS = [Peer(method, bits, group) for bits in (2, 3, 4) for method, group in (
    ("rtn", 32), ("rtn", 64), ("gptq", 32), ("gptq", 64), ("gptq", 128), ("awq", 64), ("hqq", 64),
)] + [Peer("gptq", bits, 64) for bits in (5, 6)]  # fmt: skip

Weights = dict[str, torch.Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, nargs="*", default=[], help="checkpoint folders")
    parser.add_argument("--roundings", nargs="*", choices=ROUNDINGS, default=list(ROUNDINGS))
    parser.add_argument("--no-peers", action="store_true", help="ours only, for a quick look")
    parser.add_argument("--peer-python", help="an interpreter with llama-cpp-python and gguf")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--transforms", nargs="*", choices=TRANSFORMS, default=["none"])
    parser.add_argument("--add", action="store_true", help="to what --output has")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--picture", type=Path, default=PICTURE)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: dict[tuple[object, ...], dict[str, Any]] = {}
    if options.add:
        known = msgspec.json.decode(options.output.read_bytes())["rows"]
        rows = {what_is_measured(row): row for row in known}
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    for folder in (demo_checkpoint(), *options.models):
        peers = [] if options.no_peers else PEERS
        for row in measured(folder, seeds, options, peers):
            rows[what_is_measured(row)] = row
            print(f"{row['model']} {row['method']} {row['bits']:.2f} bits: "
                  f"+{row['increase']:.4f} nats, KL {row['kl']:.4f}", flush=True)  # fmt: skip
        # After each model, so that what was measured is kept when the next is stopped.
        write(list(rows.values()), options)


def what_is_measured(row: Mapping[str, Any]) -> tuple[object, ...]:
    """What two rows have in common of which the later replaces the earlier."""
    return row["model"], row["method"], round(row["bits"], 3), row["seed"]


def write(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """Results, their table, and the picture."""
    summary = summarized(rows)
    results = {
        "windows": WINDOWS, "tokens": TOKENS, "report_windows": REPORT_WINDOWS,
        "machine": f"{platform.system()} {platform.machine()}",
        "table": table(summary), "tables": {"widths": widths_table(summary)},
        "summary": summary, "rows": rows,
    }  # fmt: skip
    content = msgspec.json.format(msgspec.json.encode(results), indent=2)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_bytes(content + b"\n")
    draw(summary, options.picture)


def measured(
    folder: Path, seeds: Iterable[int], options: argparse.Namespace, peers: list[Peer]
) -> Iterator[dict[str, Any]]:
    """A row for each seed, method and width of one model."""
    for seed in seeds:
        supernet, calibration_BT, report_BT = witness(folder, seed)
        reference = Reference(supernet, report_BT)
        choices_BT = windows(folder, supernet, CHOICE_WINDOWS, CHOICE_SEED + seed)
        models = chain(
            *(
                ours(supernet, calibration_BT, choices_BT, options.roundings, seed, name)
                for name in options.transforms
            ),
            peer_models(folder, supernet, calibration_BT, peers, options.peer_python),
        )
        for method, bits, weights in models:
            model = with_weights(supernet, weights)
            increase, divergence = reference.compare(model)
            yield {"model": folder.name, "method": method, "bits": bits, "seed": seed,
                   "dense": reference.loss, "increase": increase, "kl": divergence}  # fmt: skip


def with_weights(supernet: Supernet, weights: Weights) -> Supernet:
    """The model with these in place of its own; with a head of its own where they have one."""
    tied = supernet.spec.tied_embeddings and "head" not in weights
    spec = msgspec.structs.replace(supernet.spec, tied_embeddings=tied)
    return Supernet(spec, {**supernet.weights, **weights}, supernet.shape)


def witness(folder: Path, seed: int) -> tuple[Supernet, torch.Tensor, torch.Tensor]:
    """The ordered model, calibration windows of a seed, and report windows, int64 `[B, T]`."""
    checkpoint = Checkpoint.open(folder)
    supernet = Supernet.from_checkpoint(checkpoint)
    calibration_BT = windows(folder, supernet, WINDOWS, seed)
    report_BT = windows(folder, supernet, REPORT_WINDOWS, None)
    supernet.permute(find_width_orders(supernet, calibration_BT))
    return supernet, calibration_BT, report_BT


def windows(folder: Path, supernet: Supernet, count: int, seed: int | None) -> torch.Tensor:
    """Calibration windows of a seed, or those of the report, int64 `[B, T]`."""
    length = min(TOKENS, supernet.spec.max_context)
    if folder != demo_checkpoint():
        start = Checkpoint.open(folder).config["bos_token_id"]
        return written(supernet, start, count, length, 0 if seed is None else seed + 1)
    tokenizer = Tokenizer.load(folder)
    stream = encode_corpus(
        read_documents(heldout_text(folder) if seed is None else folder / "calibration.txt"),
        lambda text: tokenizer.encode(text, add_bos=False),
        tokenizer.start_id,
    )
    return torch.from_numpy(token_windows(stream, length, count, seed or 0))


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


def block_matrices(supernet: Supernet) -> list[str]:
    """Names of what is rounded."""
    return [name for name, shape in supernet.spec.tensors().items()
            if name.startswith("blocks.") and len(shape) == 2]  # fmt: skip


def ours(
    supernet: Supernet,
    tokens_BT: torch.Tensor,
    choices_BT: torch.Tensor,
    roundings: list[Rounding],
    seed: int,
    transform: str = "none",
) -> Iterator[tuple[str, float, Weights]]:
    """Method, effective bits, and the weights of all blocks: prefixes of one file, then mixed.

    With a transform all weights are given, since norms, embedding and head change with it.
    """
    changed = TRANSFORMS[transform](supernet, tokens_BT)
    rest = {} if transform == "none" else changed.weights
    called = "" if transform == "none" else f" {transform}"
    names, codec = block_matrices(changed), UniformCodec()
    for rounding in roundings:
        pairs = encoded_matrices(changed, names, codec, rounding, tokens_BT, seed=seed)
        stored = {name: value for name, value in pairs if isinstance(value, EncodedMatrix)}
        for planes in PLANES:
            weights = {name: torch.from_numpy(decode_matrix(codec, matrix, planes))
                       for name, matrix in stored.items()}  # fmt: skip
            weights = {**rest, **weights}
            size = sum(m.scales.nbytes + sum(p.nbytes for p in m.planes[:planes])
                       for m in stored.values())  # fmt: skip
            yield f"pliant {rounding}{called}", 8 * size / num_weights(supernet, names), weights
        for bits, weights in mixed_models(changed, choices_BT, codec, stored) if not rest else ():
            yield f"pliant {rounding} mixed", bits, weights


def peer_models(
    folder: Path,
    supernet: Supernet,
    tokens_BT: torch.Tensor,
    offered: list[Peer],
    peer_python: str | None,
) -> Iterator[tuple[str, float, Weights]]:
    """The same of dedicated quantizers, and of llama.cpp where an interpreter has it."""
    names = block_matrices(supernet)
    peers: dict[Peer, Weights] = defaultdict(dict)
    importance: dict[str, np.ndarray[Any, np.dtype[np.float64]]] = {}
    stream = MomentStream(supernet, tokens_BT)
    for block in range(supernet.spec.num_blocks) if offered or peer_python else ():
        for shared, moment_II in stream.advance(block).items():
            feedback = ErrorFeedback.of(moment_II)
            for name in (f"blocks.{block}.{matrix}" for matrix in SHARED_INPUTS[shared]):
                importance[name] = moment_II.diagonal().copy()
                weight_OI = supernet.weights[name].numpy()
                for peer in offered:
                    rounded_OI = peer.quantize(weight_OI, feedback).astype(np.float32)
                    peers[peer][name] = torch.from_numpy(rounded_OI)
    for peer, weights in peers.items():
        size_bits = sum(w.numel() * peer.effective_bits(w.shape[1]) for w in weights.values())
        yield f"{peer.method} g{peer.group}", size_bits / num_weights(supernet, names), weights
    if peer_python:
        dense = {name: supernet.weights[name].numpy() for name in names}
        config = Checkpoint.open(folder).config
        yield from quantized_by_llama_cpp(peer_python, config, dense, importance)


def num_weights(supernet: Supernet, names: Iterable[str]) -> int:
    return sum(supernet.weights[name].numel() for name in names)


if __name__ == "__main__":
    main()
