"""A model whose logits depend on the whole text, and tokenizers of both families."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from numpy.typing import NDArray
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from pliant.bits.codec import EncodedMatrix
from pliant.bits.uniform import UniformCodec
from pliant.runtime import Chunk, Engine, Tokenizer
from pliant.spec import ModelSpec
from pliant.subnet import Subnet

SHARED_MODELS = Path(__file__).parents[3] / "shared" / "data" / "models"
MODEL_NAMES = ("stories260K", "babyllama-tok105", "tale-6m-draft")
TEXT = (
    "Once upon a time there was a little fox who lived in the wood. The fox said: hello, hello! "
    "Café, naïve, 中文字, 日本語, 😀👍🏽 and e\u0301 are words too. It was 12345 o'clock.\n\n"
) * 8


class FakeCache:
    """The tokens seen so far; refuses more than its capacity."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.tokens: list[int] = []

    @property
    def length(self) -> int:
        return len(self.tokens)

    def truncate(self, length: int) -> None:
        del self.tokens[length:]


class FakeModel:
    """Logits are seeded by the last token and a hash of all tokens before it."""

    def __init__(self, vocab_size: int = 64, max_context: int = 64, seed: int = 0) -> None:
        self.vocab_size = vocab_size
        self.max_context = max_context
        random = np.random.default_rng(seed)
        self._bigram = random.normal(0, 2, (vocab_size, vocab_size)).astype(np.float32)
        self._past = random.normal(0, 1, (97, vocab_size)).astype(np.float32)
        self.batch_sizes: list[int] = []

    def new_cache(self, capacity: int, max_bytes: int | None = None) -> FakeCache:
        assert 1 <= capacity <= self.max_context
        return FakeCache(capacity)

    def forward_chunk(self, chunks: Sequence[Chunk]) -> list[NDArray[np.float32]]:
        self.batch_sizes.append(len(chunks))
        return [self._forward(chunk) for chunk in chunks]

    def _forward(self, chunk: Chunk) -> NDArray[np.float32]:
        rows = []
        for token in chunk.tokens.tolist():
            chunk.cache.tokens.append(token)
            assert chunk.cache.length <= chunk.cache.capacity
            past = sum((place + 1) * seen for place, seen in enumerate(chunk.cache.tokens)) % 97
            rows.append(self._bigram[token] + self._past[past])
        wanted = {"all": rows, "last": rows[-1:], "none": []}[chunk.logits]
        return np.array(wanted, np.float32).reshape(len(wanted), self.vocab_size)


@pytest.fixture
def make_model() -> Callable[..., FakeModel]:
    return FakeModel


def byte_level_backend(vocab_size: int = 400) -> tokenizers.Tokenizer:
    """A byte-level BPE trained on `TEXT`, with ChatML's tokens."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([TEXT], trainer)
    return backend


def byte_fallback_backend() -> tokenizers.Tokenizer:
    """A SentencePiece-like BPE: ▁ for spaces, byte tokens for what it lacks, BOS in front."""
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    vocabulary = ["<unk>", "<s>", "</s>", *byte_tokens, "▁", *"abcdefghilmnoprstuw.,!", "é"]
    merges = [("▁", "a"), ("▁", "o"), ("n", "c"), ("▁o", "nc"), ("▁onc", "e"), ("é", "é")]
    vocabulary += [first + second for first, second in merges]
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab={token: index for index, token in enumerate(vocabulary)},
            merges=merges,
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return backend


def metaspace_backend() -> tokenizers.Tokenizer:
    """A unigram tokenizer with a Metaspace decoder."""
    backend = tokenizers.Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False
    )
    backend.train_from_iterator([TEXT], trainer)
    return backend


def word_piece_backend() -> tokenizers.Tokenizer:
    """A tokenizer whose decoder looks at neighbours, so that its tokens have no bytes."""
    words = ["[UNK]", "once", "upon", "a", "time", "##s", "fox", ".", ","]
    vocabulary = {word: index for index, word in enumerate(words)}
    backend = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.WordPiece()
    return backend


BACKENDS = {
    "byte_level": byte_level_backend,
    "byte_fallback": byte_fallback_backend,
    "metaspace": metaspace_backend,
    "word_piece": word_piece_backend,
}


@pytest.fixture(scope="session")
def backends() -> dict[str, tokenizers.Tokenizer]:
    return {name: make() for name, make in BACKENDS.items()}


@pytest.fixture(params=list(BACKENDS))
def any_tokenizer(request: pytest.FixtureRequest, backends: dict[str, object]) -> Tokenizer:
    return Tokenizer(backends[request.param])


@pytest.fixture
def tokenizer(backends: dict[str, tokenizers.Tokenizer]) -> Tokenizer:
    """Byte-level, with an end token."""
    return Tokenizer(backends["byte_level"], eos_ids=[0])


@pytest.fixture(params=MODEL_NAMES)
def shared_model(request: pytest.FixtureRequest) -> Path:
    folder = SHARED_MODELS / request.param
    if not folder.exists():
        pytest.skip(f"{folder} is not here; it holds the trained models to compare on")
    return folder


class MemoryArtifact:
    """The weights of a random model, encoded; what an engine reads of an artifact."""

    def __init__(self, spec: ModelSpec, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        self.spec = spec
        self._matrices: dict[str, EncodedMatrix] = {}
        self._vectors: dict[str, NDArray[np.float32]] = {}
        for name, shape in spec.tensors().items():
            if len(shape) == 2:
                weight_OI = random.normal(0, shape[1] ** -0.5, shape).astype(np.float32)
                self._matrices[name] = UniformCodec().encode(weight_OI)
            else:
                mean = 0 if name.endswith(".bias") else 1 - spec.norm_offset
                self._vectors[name] = random.normal(mean, 0.1, shape).astype(np.float32)

    def planes(self, name: str) -> list[NDArray[np.uint8]]:
        return self._matrices[name].planes

    def scales(self, name: str) -> NDArray[np.uint16]:
        return self._matrices[name].scales

    def vector(self, name: str) -> NDArray[np.float32]:
        return self._vectors[name]

    def dequantized(self, name: str, planes: int) -> NDArray[np.float32]:
        return UniformCodec().decode(self._matrices[name], planes)


@pytest.fixture(scope="session")
def memory_artifact() -> Callable[..., MemoryArtifact]:
    """`memory_artifact(spec, seed=0)`: random weights of a spec, made once."""
    return lru_cache(MemoryArtifact)


@pytest.fixture(scope="session")
def make_engine(memory_artifact: Callable[..., MemoryArtifact]) -> Callable[..., Engine]:
    """`make_engine(options, **spec changes)`: an engine of a small random model, full shape.

    Sizes are awkward and alike only in being small; options are those of `Engine`.
    """

    def make(options: dict[str, Any] | None = None, planes: int = 8, **changes: Any) -> Engine:
        fields: dict[str, Any] = {
            "architecture": "llama", "vocab_size": 131, "hidden_size": 40, "num_blocks": 2,
            "num_heads": 6, "num_groups": 3, "head_dim": 12, "ffn_size": 150, "max_context": 600,
            "attention_scale": 12**-0.5, "block_windows": (6, 0),
        }  # fmt: skip
        spec = ModelSpec(**{**fields, **changes})
        return Engine(memory_artifact(spec), Subnet.full(spec, planes), **(options or {}))

    return make
