"""Tiny random supernets whose blocks do something, and really trained ones where they are there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from pliant.data import encode_corpus, read_documents, token_windows
from pliant.models import Checkpoint, Supernet
from pliant.spec import ModelSpec

SHARED = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def make_supernet() -> Callable[..., Supernet]:
    def make(seed: int = 0, **changes: object) -> Supernet:
        numbers: dict[str, object] = {
            "architecture": "llama", "vocab_size": 101, "hidden_size": 36, "num_blocks": 6,
            "num_heads": 6, "num_groups": 3, "head_dim": 10, "ffn_size": 70, "max_context": 64,
            "attention_scale": 10**-0.5,
        }  # fmt: skip
        supernet = Supernet.initialized(ModelSpec(**{**numbers, **changes}), seed)
        generator = torch.Generator().manual_seed(seed + 1)
        for name, weight in supernet.weights.items():
            fresh = torch.randn(weight.shape, generator=generator)
            scale = weight.shape[-1] ** -0.5 if weight.ndim == 2 else 0.2
            supernet.weights[name] = fresh * scale + (weight.ndim == 1 and "norm" in name)
        return supernet

    return make


@pytest.fixture(name="tokens_BT")
def random_tokens() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(7).integers(0, 101, (5, 23)))


@pytest.fixture(scope="session")
def trained() -> Callable[[str, str, int, int], tuple[Supernet, torch.Tensor]]:
    """`trained(model, corpus file, windows, tokens in each)`, or a skip that says why."""
    from tokenizers import Tokenizer

    def load(model: str, corpus: str, count: int, length: int) -> tuple[Supernet, torch.Tensor]:
        folder, text = SHARED / "models" / model, SHARED / "corpus" / corpus
        for path in (folder, text):
            if not path.exists():
                pytest.skip(f"needs {path.name} of the shared data, which is not here")
        checkpoint = Checkpoint.open(folder)
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        documents = read_documents(text)[:40]
        stream = encode_corpus(
            documents, lambda document: tokenizer.encode(document, add_special_tokens=False).ids,
            checkpoint.config["bos_token_id"],
        )  # fmt: skip
        windows = token_windows(stream, length, count, seed=11)
        return Supernet.from_checkpoint(checkpoint), torch.from_numpy(windows)

    return load
