"""Is ShiftAddLLM ahead of GPTQ at 2 and 3 bits? At equal effective bits, all scales counted.

`python benchmarks/shift_add.py --models FOLDER ...` writes `benchmarks/results/shift_add.json`.
Witnesses, windows and loss are those of `benchmarks/bits.py`. Rows: dedicated GPTQ with groups of
64; ShiftAddLLM with its own two scalings, in the order of falling input size as it is published
("lat": 8 columns share scales, "acc": each column has its own; both over so many rows that a weight
costs as many bits as GPTQ's, acc without its random rotation); the codec `shift-add` as artifacts
store it; and prefixes of its four planes. Shape suffixes: O rows, I columns, J columns at once.
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from bits import ROOT, Reference, num_weights, witness
from bits_peers import Peer
from pliant.bits import EncodedMatrix, ErrorFeedback, ShiftAddCodec
from pliant.bits.binary_coding import BinaryCode, Float, fit
from pliant.calibrate import SHARED_INPUTS, MomentStream
from pliant.models import Supernet
from pliant.recipes.demo import demo_checkpoint

RESULTS = ROOT / "benchmarks" / "results" / "shift_add.json"
BITS = (2, 3, 4)
#: Columns that share scales, by scaling; rows so that a weight costs 16 / 64 bits for scales.
COLUMNS = {"lat": 8, "acc": 1}
SCALE_WEIGHTS = 64

#: Weights rounded, and all their bits, from weights, moments of their inputs and feedback on those.
Method = Callable[[np.ndarray, np.ndarray, ErrorFeedback], tuple[np.ndarray, float]]


def main() -> None:
    run(__doc__, RESULTS, measured, table)


def run(
    description: str | None,
    output: Path,
    measured: Callable[[Path, int], Iterator[dict[str, Any]]],
    tabled: Callable[[list[dict[str, Any]]], dict[str, Any]],
) -> None:
    """Rows of the demo model and of `--models`, by seed, said as they come and kept after each."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--models", type=Path, nargs="*", default=[], help="checkpoint folders")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--output", type=Path, default=output)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for folder in (demo_checkpoint(), *options.models):
        for seed in range(options.seeds):
            for row in measured(folder, seed):
                rows.append(row)
                loss = row["increase"] / row["dense"]
                print(f"{row['model']} {row['method']} {row['bits']:.2f} bits: {loss:+.1%}, "
                      f"KL {row['kl']:.4f}", flush=True)  # fmt: skip
        results = {"seeds": options.seeds, "table": tabled(rows), "rows": rows}
        content = msgspec.json.format(msgspec.json.encode(results), indent=2)
        options.output.write_bytes(content + b"\n")


def measured(folder: Path, seed: int) -> Iterator[dict[str, Any]]:
    """A row for each method and width of one model."""
    supernet, calibration_BT, report_BT = witness(folder, seed)
    reference, methods = Reference(supernet, report_BT), all_methods()
    rounded: dict[str, dict[str, torch.Tensor]] = {name: {} for name in methods}
    bits: dict[str, float] = defaultdict(float)
    stream = MomentStream(supernet, calibration_BT)
    for block in range(supernet.spec.num_blocks):
        for shared, moment_II in stream.advance(block).items():
            feedback = ErrorFeedback.of(moment_II)
            for name in (f"blocks.{block}.{matrix}" for matrix in SHARED_INPUTS[shared]):
                weight_OI = supernet.weights[name].numpy()
                for label, method in methods.items():
                    value_OI, size = method(weight_OI, moment_II, feedback)
                    rounded[label][name] = torch.from_numpy(value_OI.astype(np.float32))
                    bits[label] += size
    count = num_weights(supernet, rounded[next(iter(methods))])
    for label, weights in rounded.items():
        model = Supernet(supernet.spec, {**supernet.weights, **weights}, supernet.shape)
        increase, divergence = reference.compare(model)
        yield {"model": folder.name, "method": label, "bits": bits[label] / count, "seed": seed,
               "dense": reference.loss, "increase": increase, "kl": divergence}  # fmt: skip


def all_methods() -> dict[str, Method]:
    """By the name of their rows."""
    methods: dict[str, Method] = {}
    for bits in BITS:
        methods[f"GPTQ g64, {bits} bits"] = gptq(Peer("gptq", bits, 64))
        for scaling in COLUMNS:
            methods[f"ShiftAddLLM {scaling}, {bits} planes"] = Published(bits, scaling)
        methods[f"shift-add codec, {bits} planes"] = stored(bits, bits)
    for prefix in BITS[:-1]:
        methods[f"shift-add codec, {prefix} of 4 planes"] = stored(4, prefix)
    return methods


def gptq(peer: Peer) -> Method:
    """The peer of `benchmarks/bits.py`."""

    def rounded(weight_OI: np.ndarray, _: np.ndarray, feedback: ErrorFeedback) -> Any:
        value_OI = peer.quantize(weight_OI, feedback)
        return value_OI, weight_OI.size * peer.effective_bits(weight_OI.shape[1])

    return rounded


def stored(planes: int, prefix: int) -> Method:
    """The first planes of the codec as an artifact holds them, and the bytes read of it."""
    codec, last = ShiftAddCodec(planes), dict[int, EncodedMatrix]()

    def rounded(weight_OI: np.ndarray, _: np.ndarray, feedback: ErrorFeedback) -> Any:
        last[0] = codec.encode_compensated(weight_OI, feedback)
        size = last[0].scales.nbytes + sum(plane.nbytes for plane in last[0].planes[:prefix])
        return codec.decode(last[0], prefix), 8 * size

    return rounded


@dataclass(frozen=True)
class Published:
    """ShiftAddLLM with blocks of its own shape, which no kernel here multiplies."""

    planes: int
    scaling: str

    def __call__(
        self, weight_OI: np.ndarray, moment_II: np.ndarray, _: ErrorFeedback
    ) -> tuple[np.ndarray, float]:
        """Columns in falling order of their inputs' size; those of a block stay together."""
        columns = COLUMNS[self.scaling]
        size_B = np.add.reduceat(moment_II.diagonal(), np.arange(0, len(moment_II), columns))
        # A short last block stays the last.
        whole = len(moment_II) // columns
        block_B = np.concatenate([np.argsort(-size_B[:whole], kind="stable"),
                                  np.arange(whole, len(size_B))])  # fmt: skip
        order_I = (block_B[:, None] * columns + np.arange(columns)).ravel()
        order_I = order_I[order_I < len(moment_II)]
        feedback = ErrorFeedback.of(moment_II[np.ix_(order_I, order_I)])
        value_OI = np.empty(weight_OI.shape)
        value_OI[:, order_I], scales = self._coded(weight_OI[:, order_I], feedback, columns)
        return value_OI, self.planes * weight_OI.size + 16 * scales

    def _coded(
        self, weight_OI: np.ndarray, feedback: ErrorFeedback, columns: int
    ) -> tuple[np.ndarray, int]:
        """Rounded weights, and how many scales they need."""
        rows = min(self.planes * SCALE_WEIGHTS // columns, len(weight_OI))
        value_OI, codes = np.empty(weight_OI.shape), list[BinaryCode]()

        def begin(_: int, target_KOJ: Float) -> None:
            target_ND = blocks(target_KOJ[0], rows)
            real_ND = blocks(np.ones_like(target_KOJ[0]), rows)
            codes.append(fit(target_ND, real_ND, self.planes))

        def round_column(column: int, target_KO: Float) -> Float:
            number_ND = codes[-1].nearest(blocks(target_KO[0][:, None], rows))
            value_OI[:, column] = codes[-1].values(number_ND).ravel()[: len(weight_OI)]
            return value_OI[None, :, column]

        feedback.sweep(weight_OI, round_column, 1, begin, columns)
        return value_OI, sum(code.scale_Nq.size for code in codes)


def blocks(value_OJ: Float, rows: int) -> Float:
    """`[N, rows * J]`, the last block filled with zeros."""
    missing = -len(value_OJ) % rows
    return np.pad(value_OJ, ((0, missing), (0, 0))).reshape(-1, rows * value_OJ.shape[1])


def table(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Loss relative to dense, mean over seeds and half their range; in order of bits."""
    points: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        points[row["model"], row["method"]].append(row)
    cells = []
    for (model, method), found in points.items():
        bits = statistics.fmean(row["bits"] for row in found)
        losses = [row["increase"] / row["dense"] for row in found]
        cells.append((model, round(bits), statistics.fmean(losses), [
            model, method, f"{bits:.2f}", f"{statistics.fmean(losses):+.1%}",
            f"{(max(losses) - min(losses)) / 2:.1%}" if len(losses) > 1 else "one seed",
            f"{statistics.fmean(row['kl'] for row in found):.4f}",
        ]))  # fmt: skip
    columns = ["model", "method", "effective bits", "loss", "± seeds", "KL, nats"]
    ordered = [cell for *_, cell in sorted(cells, key=lambda entry: entry[:3])]
    return {"columns": columns, "align": "llrrrr", "rows": ordered}


if __name__ == "__main__":
    main()
