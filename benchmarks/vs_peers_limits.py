"""What the machine allowed in each round of `vs_peers.py`: reading, and products of bytes.

Both move by a tenth and more while others use the host, so they are probed between the rounds, and
every sample is set against the probes on both sides of its own round.
"""

from __future__ import annotations

import statistics
from itertools import pairwise
from typing import Any

import msgspec

from pliant import _native
from pliant.evaluate.speed import RunSample
from pliant.measurement import Measurement
from pliant.recipes.bench import BandwidthProbe
from pliant.runtime.bandwidth import read_rate
from pliant.spec import ModelSpec
from vs_peers_cases import Case

#: Rounds of the probe of products: 3 ms each.
PEAK_ROUNDS = 20


class Limits:
    """Probes with each number of threads, one more than there are rounds."""

    def __init__(self, threads: list[int]) -> None:
        self._reads: dict[int, list[Measurement]] = {count: [] for count in threads}
        self._peaks: dict[int, list[float]] = {count: [] for count in threads}
        self.probe()

    def probe(self) -> None:
        """Measure now: before the first round and after each."""
        isa = _native.kernels.best()
        for count, reads in self._reads.items():
            reads.append(read_rate(count))
            # Empty where the path has no measure.
            rates = _native.kernels.measure_dot_peak(isa, count, PEAK_ROUNDS)
            self._peaks[count].append(max(rates, default=0.0))

    def stored(self) -> dict[str, Any]:
        """The first and the last probe, the drift between them, and all of them."""
        probes = [
            BandwidthProbe(threads=count, before=reads[0], after=reads[-1])
            for count, reads in self._reads.items()
        ]
        medians = [[read.median for read in reads] for reads in self._reads.values()]
        return {
            "probes": msgspec.to_builtins(probes),
            "read_rates": medians,
            "int8_peaks": [[peak / 1e9 for peak in peaks] for peaks in self._peaks.values()],
            "drift": max((max(rates) - min(rates)) / statistics.median(rates) for rates in medians),
        }

    def read_share(self, case: Case, samples: list[RunSample]) -> float:
        """Bytes that decoding read over those that plain reading would have, median of rounds."""
        token_bytes = case.weight_bytes + case.cache_bytes
        rates = [read.median * 1e9 for read in self._reads[case.threads]]
        return statistics.median(
            case.length.decode * token_bytes / sample.decode_seconds / rate
            for sample, rate in zip(samples, _between(rates), strict=True)
        )

    def int8_share(self, case: Case, samples: list[RunSample]) -> float | None:
        """Operations of a prompt over those of nothing but byte products; None without a probe."""
        peaks = _between(self._peaks[case.threads])
        if min(peaks) == 0.0:
            return None
        operations = prompt_operations(case.spec, case.length.prompt)
        return statistics.median(
            operations / sample.first_seconds / peak
            for sample, peak in zip(samples, peaks, strict=True)
        )


def prompt_operations(spec: ModelSpec, tokens: int) -> int:
    """Multiplications and additions in the matrix products of a prompt; the head is read once."""
    sizes = {name: size for name, size in spec.tensors().items() if len(size) == 2}
    blocks = sum(rows * columns for name, (rows, columns) in sizes.items() if "." in name)
    return 2 * (tokens * blocks + spec.vocab_size * spec.hidden_size)


def _between(values: list[float]) -> list[float]:
    """The means of neighbours."""
    return [(before + after) / 2 for before, after in pairwise(values)]
