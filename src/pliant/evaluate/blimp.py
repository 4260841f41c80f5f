"""BLiMP: does the model find the grammatical sentence of a minimal pair more likely?

Warstadt et al., "BLiMP: The Benchmark of Linguistic Minimal Pairs for English" (TACL 2020,
arXiv 1912.00582): 67 phenomena of 1000 pairs. Accuracy is the share of pairs whose good sentence
has the higher total log-likelihood; chance is one half.
"""

from __future__ import annotations

import json
import lzma
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pliant.errors import DataError
from pliant.measurement import Progress, silent

#: Total natural log-likelihood of each sentence, in the order given.
LogLikelihood = Callable[[list[str]], list[float]]

#: Phenomena of the published set; only the progress display relies on it.
_NUM_PHENOMENA = 67


@dataclass(frozen=True)
class MinimalPair:
    """Two sentences that differ in one point; only `good` is grammatical."""

    good: str
    bad: str


@dataclass(frozen=True)
class BlimpResult:
    """Accuracy of each phenomenon (0 to 1) and the pairs it was measured on."""

    accuracy: dict[str, float]
    num_pairs: dict[str, int]

    @property
    def mean(self) -> float:
        """The mean over phenomena, each counting the same: the figure papers report."""
        return sum(self.accuracy.values()) / len(self.accuracy)


def read_pairs(archive: Path) -> Iterator[tuple[str, list[MinimalPair]]]:
    """Phenomena and their pairs from a `.tar.xz` of JSONL files, one file in memory at a time.

    Raises `DataError` for a missing or damaged archive and for a line without both sentences.
    """
    try:
        with tarfile.open(archive, mode="r|xz") as files:
            for member in files:
                content = files.extractfile(member)
                if content is None or not member.name.endswith(".jsonl"):
                    continue
                name = PurePosixPath(member.name).stem
                yield name, [_pair(name, line) for line in content.read().splitlines()]
    except (OSError, tarfile.TarError, lzma.LZMAError, EOFError) as error:
        raise DataError(f"cannot read the BLiMP archive {archive}: {error}") from error


def blimp(
    archive: Path,
    log_likelihood: LogLikelihood,
    pairs_per_phenomenon: int | None = None,
    progress: Progress = silent,
) -> BlimpResult:
    """Score a model on the pairs of `archive` (the first ones of each phenomenon, or all).

    `log_likelihood` gets sentences of one phenomenon at a time, good and bad in turn. Equal
    likelihoods count half, as a guess would. Raises `DataError` for an archive that is missing,
    damaged or empty.
    """
    accuracy: dict[str, float] = {}
    num_pairs: dict[str, int] = {}
    for name, all_pairs in read_pairs(archive):
        pairs = all_pairs[:pairs_per_phenomenon]
        if not pairs:
            continue
        scores = log_likelihood([text for pair in pairs for text in (pair.good, pair.bad)])
        gains = [good - bad for good, bad in zip(scores[::2], scores[1::2], strict=True)]
        wins = sum(1.0 if gain > 0 else 0.5 if gain == 0 else 0.0 for gain in gains)
        accuracy[name] = wins / len(pairs)
        num_pairs[name] = len(pairs)
        progress("BLiMP", len(accuracy), max(len(accuracy), _NUM_PHENOMENA))
    if not accuracy:
        raise DataError(f"{archive} holds no minimal pairs; give the BLiMP archive of JSONL files")
    return BlimpResult(dict(sorted(accuracy.items())), dict(sorted(num_pairs.items())))


def _pair(name: str, line: bytes) -> MinimalPair:
    try:
        record = json.loads(line)
        return MinimalPair(str(record["sentence_good"]), str(record["sentence_bad"]))
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"a line of {name} has no pair of sentences ({error!r}); "
            "each needs sentence_good and sentence_bad"
        ) from error
