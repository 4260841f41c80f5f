"""A model whose logits depend on the whole text, and a tokenizer of characters."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import tokenizers
from numpy.typing import NDArray
from tokenizers import decoders, models, pre_tokenizers

from pliant.runtime import Chunk, Tokenizer


class FakeCache:
    """The tokens seen so far; refuses more than its capacity."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.tokens: list[int] = []

    def truncate(self, length: int) -> None:
        del self.tokens[length:]


class FakeModel:
    """Logits are seeded by the last token and a hash of all tokens before it."""

    def __init__(
        self, vocab_size: int = 257, max_context: int = 64, seed: int = 0, noise: float = 0.0
    ) -> None:
        self.vocab_size = vocab_size
        self.max_context = max_context
        self.rows: list[int] = []
        random = np.random.default_rng(seed)
        self._bigram = random.normal(0, 2, (vocab_size, vocab_size)).astype(np.float32)
        self._past = random.normal(0, 1, (97, vocab_size)).astype(np.float32)
        self._bigram += np.float32(noise) * random.normal(0, 1, self._bigram.shape)

    def new_cache(self, capacity: int, max_bytes: int | None = None) -> FakeCache:
        assert 1 <= capacity <= self.max_context
        return FakeCache(capacity)

    def forward_chunk(self, chunks: Sequence[Chunk]) -> list[NDArray[np.float32]]:
        return [self._forward(chunk) for chunk in chunks]

    def _forward(self, chunk: Chunk) -> NDArray[np.float32]:
        rows = []
        for token in chunk.tokens.tolist():
            chunk.cache.tokens.append(token)
            assert len(chunk.cache.tokens) <= chunk.cache.capacity
            past = sum((place + 1) * seen for place, seen in enumerate(chunk.cache.tokens)) % 97
            rows.append(self._bigram[token] + self._past[past])
        wanted = {"all": rows, "last": rows[-1:], "none": []}[chunk.logits]
        self.rows.append(len(wanted))
        return np.array(wanted, np.float32).reshape(len(wanted), self.vocab_size)

    def logits_after(self, tokens: list[int]) -> NDArray[np.float64]:
        """The logits behind `tokens`, computed anew."""
        chunk = Chunk(np.array(tokens, np.int32), self.new_cache(len(tokens)))
        return self._forward(chunk)[0].astype(np.float64)


@pytest.fixture
def make_model() -> Callable[..., FakeModel]:
    return FakeModel


@pytest.fixture
def model() -> FakeModel:
    return FakeModel()


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """One token for every byte, and token 256 to begin with."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: index for index, character in enumerate(alphabet)}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return Tokenizer(backend, bos_id=256)
