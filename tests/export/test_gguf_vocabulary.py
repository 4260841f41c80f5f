"""Tokenizers matched to llama.cpp's, or refused with what is different."""

from __future__ import annotations

from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from pliant.errors import UnsupportedError
from pliant.export.gguf_vocabulary import gguf_vocabulary
from pliant.runtime import Tokenizer


def byte_level(*before: Any, **options: Any) -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: index for index, symbol in enumerate([*alphabet, "ab"])}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[("a", "b")]))
    last = pre_tokenizers.ByteLevel(**{"add_prefix_space": False, **options})
    backend.pre_tokenizer = pre_tokenizers.Sequence([*before, last]) if before else last
    backend.add_special_tokens(["<s>"])
    return Tokenizer(backend, bos_id=257)


def test_byte_level_tokenizers_are_named_by_their_split() -> None:
    assert gguf_vocabulary(byte_level(), 260).pre == "gpt-2"
    digits = pre_tokenizers.Digits(individual_digits=True)
    found = gguf_vocabulary(byte_level(digits), 260)
    assert (found.model, found.pre, found.merges) == ("gpt2", "smollm", ("a b",))
    assert found.tokens[257:] == ("<s>", "[PAD258]", "[PAD259]")
    assert found.kinds[256:] == (1, 3, 5, 5) and not found.add_bos


def test_merges_become_scores_where_bytes_are_tokens() -> None:
    words = [
        "<unk>",
        "<s>",
        *[f"<0x{byte:02X}>" for byte in range(256)],
        "▁",
        "a",
        "b",
        "ab",
        "▁ab",
    ]
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab={word: index for index, word in enumerate(words)},
            merges=[("a", "b"), ("▁", "ab")], unk_token="<unk>", byte_fallback=True,
        )
    )  # fmt: skip
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.ByteFallback()
    found = gguf_vocabulary(Tokenizer(backend), len(words))
    assert (found.model, found.pre, found.add_space_prefix) == ("llama", "", True)
    assert found.scores[-2:] == (0.0, -1.0) and found.scores[-3] < -1000
    assert found.kinds[0] == 2 and found.kinds[2] == 6 and found.kinds[-1] == 1


@pytest.mark.parametrize(
    ("tokenizer", "words"),
    [
        (byte_level(pre_tokenizers.Whitespace()), "splits texts by Whitespace"),
        (byte_level(add_prefix_space=True), "space before a text"),
        (
            byte_level(pre_tokenizers.Split(tokenizers.Regex("x+"), "isolated")),
            "splits texts by 'x",
        ),
        (Tokenizer(tokenizers.Tokenizer(models.Unigram())), "its model is Unigram"),
        (Tokenizer(tokenizers.Tokenizer(models.BPE(vocab={"a": 0}, merges=[]))), "bytes"),
    ],
)
def test_others_are_refused(tokenizer: Tokenizer, words: str) -> None:
    with pytest.raises(UnsupportedError, match=words):
        gguf_vocabulary(tokenizer, 300)


def test_tokens_beyond_the_embedding_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="'<s>' has the number 257"):
        gguf_vocabulary(byte_level(), 257)
