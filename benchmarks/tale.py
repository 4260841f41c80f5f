"""How good is the demo model? Held-out bits per byte, BLiMP, and a 5-gram of the same text.

`python benchmarks/tale.py` writes `benchmarks/results/tale.json`. Every document is scored by
itself: the start token and up to `window - 1` tokens give the predictions of `window` tokens, each
further window begins `stride` tokens later and scores its last `stride` tokens. Every byte of a
document counts once and its end is not predicted (the definition of `pliant.evaluate`). Line ends
around a document of the corpus are the file's layout and count nowhere; WikiText-2 is scored as it
is, as one document.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pliant.data import encode_corpus, read_documents, read_text
from pliant.evaluate import token_nats
from pliant.evaluate.blimp import BlimpResult, blimp
from pliant.evaluate.ngram import NgramModel
from pliant.evaluate.windows import Window, windows
from pliant.models import Checkpoint, Supernet
from pliant.runtime import Tokenizer

ROOT = Path(__file__).parents[1]
#: Tokens that go through the network at a time.
BATCH_TOKENS = 4096
#: Words in a row that, found in the training text, count as seen there.
OVERLAP_WORDS = 12
#: Share of its word sequences from which on a held-out document counts as seen in training.
OVERLAP_LIMIT = 0.05


@dataclass(frozen=True)
class Text:
    """A held-out text: its name in the results and its documents."""

    name: str
    documents: list[str]

    @property
    def num_bytes(self) -> int:
        """UTF-8 bytes of all documents."""
        return sum(len(document.encode()) for document in self.documents)


class Neural:
    """The demo model as a scorer of token sequences."""

    def __init__(self, folder: Path) -> None:
        self.checkpoint = Checkpoint.open(folder)
        self.model = Supernet.from_checkpoint(self.checkpoint)
        self.tokenizer = Tokenizer.load(folder)
        self.window = self.checkpoint.spec.max_context
        self.stride = self.window // 2
        assert self.tokenizer.start_id is not None
        self.start_id = self.tokenizer.start_id

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, nothing added."""
        return self.tokenizer.encode(text, add_bos=False)

    def text_nats(self, documents: list[str]) -> float:
        """Total -ln p of the documents, each scored by itself."""
        parts = [
            part
            for document in documents
            for part in windows(self.encode(document), self.start_id, self.window, self.stride)
        ]
        return sum(self._scored_nats(parts))

    def log_likelihood(self, sentences: list[str]) -> list[float]:
        """Total ln p of each sentence as a document of its own."""
        parts = []
        for sentence in sentences:
            (part,) = windows(self.encode(sentence), self.start_id, self.window, self.window)
            parts.append(part)
        return [-nats for nats in self._scored_nats(parts)]

    @torch.inference_mode()
    def _scored_nats(self, parts: list[Window]) -> list[float]:
        """Nats of the scored targets of each window; windows of like length share a batch."""
        nats = [0.0] * len(parts)
        for places in _batches([len(part.inputs) for part in parts]):
            tokens = np.zeros((len(places), len(parts[places[-1]].inputs)), dtype=np.int64)
            for row, place in enumerate(places):
                tokens[row, : len(parts[place].inputs)] = parts[place].inputs
            # Padding stands behind a window, where causal attention cannot see it.
            logits = self.model(torch.from_numpy(tokens)).numpy()
            for row, place in enumerate(places):
                part = parts[place]
                scored = slice(part.first_scored, len(part.targets))
                nats[place] = float(token_nats(logits[row, scored], part.targets[scored]).sum())
        return nats


class Ngram:
    """The 5-gram baseline as a scorer of the same tokens."""

    def __init__(self, model: NgramModel, neural: Neural) -> None:
        self.model, self.neural = model, neural

    def text_nats(self, documents: list[str]) -> float:
        """Total -ln p of the documents, each scored by itself."""
        return -sum(self.log_likelihood(documents))

    def log_likelihood(self, sentences: list[str]) -> list[float]:
        """Total ln p of each sentence as a document of its own."""
        starts = [[self.neural.start_id, *self.neural.encode(text)] for text in sentences]
        return [float(self.model.log_probabilities(np.array(ids)).sum()) for ids in starts]


def main() -> int:
    options = _parser().parse_args()
    torch.set_num_threads(options.threads)
    started = time.monotonic()
    neural = Neural(options.model)
    training = [
        [document.strip("\n") for document in read_documents(options.data / "corpus" / name)]
        for name in ("children_train.txt.xz", "pd_train.txt.xz")
    ]
    texts = _heldout_texts(options.data, [doc for docs in training for doc in docs])
    _say(started, "texts read")
    results: dict[str, Any] = {
        "question": "How good is the demo model, and how much better than a 5-gram?",
        "conditions": _conditions(neural, options),
        "model": _model_facts(options.model, neural),
        "heldout": {text.name: _measured(neural, neural, text) for text in texts},
    }
    _say(started, "held-out texts scored")
    archive = options.data / "eval" / "blimp.tar.xz"
    results["blimp"] = _blimp_facts(blimp(archive, neural.log_likelihood, options.pairs))
    _say(started, "BLiMP scored")
    if not options.skip_ngram:
        ngram = Ngram(_trained_ngram(neural, training), neural)
        _say(started, "5-gram trained")
        results["ngram"] = {
            "order": ngram.model.order,
            "ngrams": ngram.model.num_ngrams,
            "training": "all of children_train and pd_train once, nothing pruned",
            "heldout": {text.name: _measured(ngram, neural, text) for text in texts},
            "blimp": _blimp_facts(blimp(archive, ngram.log_likelihood, options.pairs)),
        }
    results["conditions"]["seconds"] = round(time.monotonic() - started)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps({**results, "blimp": results["blimp"]["mean"]}, indent=2))
    return 0


def _heldout_texts(data: Path, training: list[str]) -> list[Text]:
    children = [doc.strip("\n") for doc in read_documents(data / "corpus/children_valid.txt")]
    books = [doc.strip("\n") for doc in read_documents(data / "corpus/pd_valid.txt")]
    unseen = [not seen for seen in _seen_in_training(children, training)]
    return [
        Text("children_valid", children),
        Text(
            "children_valid_unseen", [d for d, keep in zip(children, unseen, strict=True) if keep]
        ),
        Text("pd_valid", books),
        Text("wikitext2_test", [read_text(data / "wikitext-2/test.txt")]),
    ]


def _seen_in_training(documents: list[str], training: list[str]) -> list[bool]:
    """Whether more than a trace of each document stands in the training text, word for word."""
    wanted = [set(_word_runs(document, OVERLAP_WORDS)) for document in documents]
    everything = set().union(*wanted)
    found: set[tuple[str, ...]] = set()
    for document in training:
        found.update(run for run in _word_runs(document, 1) if run in everything)
    return [len(runs & found) > OVERLAP_LIMIT * len(runs) for runs in wanted]


def _word_runs(text: str, stride: int) -> Iterator[tuple[str, ...]]:
    words = re.findall(r"[a-z]+", text.lower())
    for begin in range(0, len(words) - OVERLAP_WORDS + 1, stride):
        yield tuple(words[begin : begin + OVERLAP_WORDS])


def _trained_ngram(neural: Neural, training: list[list[str]]) -> NgramModel:
    documents = [document for documents in training for document in documents]
    tokens = encode_corpus(documents, neural.encode, neural.start_id)
    return NgramModel.train(tokens, neural.checkpoint.spec.vocab_size, order=5)


def _measured(scorer: Neural | Ngram, neural: Neural, text: Text) -> dict[str, Any]:
    tokens = sum(len(neural.encode(document)) for document in text.documents)
    nats = scorer.text_nats(text.documents)
    return {
        "documents": len(text.documents),
        "bytes": text.num_bytes,
        "tokens": tokens,
        "nats_per_token": round(nats / tokens, 4),
        "bits_per_byte": round(nats / math.log(2) / text.num_bytes, 4),
    }


def _blimp_facts(result: BlimpResult) -> dict[str, Any]:
    return {
        "mean": round(result.mean, 4),
        "pairs": sum(result.num_pairs.values()),
        "accuracy": {name: round(value, 4) for name, value in result.accuracy.items()},
    }


def _model_facts(folder: Path, neural: Neural) -> dict[str, Any]:
    parameters = sum(weight.numel() for weight in neural.model.parameters())
    facts: dict[str, Any] = {"name": folder.name, "parameters": parameters}
    log = folder / "training_log.jsonl"
    if log.exists():
        last = json.loads(log.read_text().splitlines()[-1])
        facts |= {
            "tokens_seen": last["tokens"],
            "tokens_per_parameter": round(last["tokens"] / parameters, 1),
            "training_seconds": last["seconds"],
        }
    return facts


def _conditions(neural: Neural, options: argparse.Namespace) -> dict[str, Any]:
    return {
        "window": neural.window,
        "stride": neural.stride,
        "weights": "bfloat16 as stored, computed in float32",
        "threads": options.threads,
        "machine": platform.machine(),
        "torch": torch.__version__,
        "overlap": f"a document is seen where over {OVERLAP_LIMIT:.0%} of its runs of "
        f"{OVERLAP_WORDS} words stand in the training text",
    }


def _batches(lengths: list[int]) -> Iterator[list[int]]:
    """Places sorted by length, in groups of about `BATCH_TOKENS`; the last one is the longest."""
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[place] > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def _say(started: float, what: str) -> None:
    print(f"{time.monotonic() - started:6.0f} s  {what}", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared/data", help="texts")
    parser.add_argument("--model", type=Path, default=ROOT / "models/tale-750k")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/tale.json")
    parser.add_argument("--pairs", type=int, help="first pairs of each BLiMP phenomenon only")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--skip-ngram", action="store_true", help="measure the model only")
    return parser


if __name__ == "__main__":
    sys.exit(main())
