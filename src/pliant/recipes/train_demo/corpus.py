"""What the demo model reads: its tokenizer, its mixture of texts, and a held-out part."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import decoders, models, pre_tokenizers, trainers

from pliant.data import (
    DOCUMENT_SEPARATOR,
    Mixture,
    Source,
    TokenArray,
    cached_tokens,
    read_documents,
)
from pliant.errors import DataError
from pliant.recipes.train_demo.config import DemoConfig

CHILDREN_TRAIN = "children_train.txt.xz"
BOOKS_TRAIN = "pd_train.txt.xz"
CHILDREN_VALID = "children_valid.txt"

#: The separator is the first token of the vocabulary.
SEPARATOR_ID = 0
# Merges settle after some tens of megabytes; more books would only take longer.
_BOOKS_STRIDE = 4
_BOOK_CHARACTERS = 200_000


@dataclass(frozen=True, eq=False)
class DemoCorpus:
    """Everything a training run reads. `heldout` is a token stream with `heldout_bytes` of text."""

    tokenizer: Path
    mixture: Mixture
    heldout: TokenArray
    heldout_bytes: int

    def heldout_windows(self, length: int, count: int) -> NDArray[np.int64]:
        """The first `count` windows of `length` tokens, one token apart from the next; int64."""
        available = (self.heldout.size - 1) // (length - 1)
        if available < 1:
            raise DataError(
                f"held-out text has {self.heldout.size} tokens, fewer than a window of {length}; "
                f"give a longer {CHILDREN_VALID}"
            )
        starts = (length - 1) * np.arange(min(count, available))
        places = starts[:, None] + np.arange(length)
        windows: NDArray[np.int64] = self.heldout[places].astype(np.int64)
        return windows


def prepare_corpus(config: DemoConfig) -> DemoCorpus:
    """Train the tokenizer and encode the texts, or take both from `config.state`.

    Raises `DataError` naming the first file that is missing from `config.corpus`.
    """
    for name in (CHILDREN_TRAIN, BOOKS_TRAIN, CHILDREN_VALID):
        if not (config.corpus / name).is_file():
            raise DataError(
                f"the corpus folder {config.corpus} has no {name}; "
                "name the folder that holds it with --corpus"
            )
    config.state.mkdir(parents=True, exist_ok=True)
    path = config.state / "tokenizer.json"
    if not path.exists():
        partial = path.with_suffix(".partial")
        train_tokenizer(_tokenizer_texts(config.corpus), config.shape.vocab_size).save(str(partial))
        partial.replace(path)
    streams = {
        name: _stream(config.corpus / name, path, config.state / "tokens")
        for name in (CHILDREN_TRAIN, BOOKS_TRAIN, CHILDREN_VALID)
    }
    share = config.children_share
    mixture = Mixture(
        [
            Source("children", streams[CHILDREN_TRAIN], share),
            Source("books", streams[BOOKS_TRAIN], 1 - share),
        ],
        config.seed,
    )
    heldout_bytes = (config.corpus / CHILDREN_VALID).stat().st_size
    return DemoCorpus(path, mixture, streams[CHILDREN_VALID], heldout_bytes)


def train_tokenizer(texts: Iterator[str], vocab_size: int) -> tokenizers.Tokenizer:
    """A byte-level BPE tokenizer: any text comes back byte for byte, each digit is a token.

    `<|endoftext|>` has id 0. Raises `DataError` when the texts have too few distinct words for
    `vocab_size` tokens.
    """
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[DOCUMENT_SEPARATOR],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    found = tokenizer.get_vocab_size()
    if found != vocab_size:
        raise DataError(
            f"a vocabulary of {vocab_size} tokens was asked for, the texts give {found}; "
            "give more text or ask for fewer"
        )
    return tokenizer


def _tokenizer_texts(corpus: Path) -> Iterator[str]:
    yield from read_documents(corpus / CHILDREN_TRAIN)
    for document in read_documents(corpus / BOOKS_TRAIN)[::_BOOKS_STRIDE]:
        yield document[:_BOOK_CHARACTERS]


def _stream(text: Path, tokenizer: Path, folder: Path) -> TokenArray:
    fingerprint = hashlib.sha256(tokenizer.read_bytes()).hexdigest()
    backend = tokenizers.Tokenizer.from_file(str(tokenizer))

    def encode(document: str) -> list[int]:
        # Blank lines beside a separator are the file's layout, not the story's.
        ids: list[int] = backend.encode(document.strip("\n")).ids
        return ids

    return cached_tokens(text, folder, encode, f"stripped {fingerprint}", SEPARATOR_ID)
