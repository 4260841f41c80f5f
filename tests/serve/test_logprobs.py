"""Log-probabilities of tokens that are parts of characters."""

from __future__ import annotations

from pliant.runtime import Tokenizer
from pliant.serve.api.logprobs import chat_logprobs, completion_logprobs
from pliant.serve.writer import TokenScore


def test_parts_of_characters_keep_apart_and_have_the_place_of_theirs(
    bytes_tokenizer: Tokenizer,
) -> None:
    """Each token is a byte: `e` with an accent has two, the fox three of four."""
    text = "aé漢b"
    tokens = bytes_tokenizer.encode(text, add_bos=False)
    assert len(tokens) == 7
    first, second = tokens[1:3]
    scores = [TokenScore(token, -1.0, ((first, -2.0), (second, -3.0))) for token in tokens]
    found = completion_logprobs(bytes_tokenizer, scores, 10)
    assert found["tokens"][:3] == ["a", r"bytes:\xc3", r"bytes:\xa9"]
    assert [text[place - 10] for place in found["text_offset"]] == list("aéé漢漢漢b")
    assert found["top_logprobs"][0] == {"a": -1.0, r"bytes:\xc3": -2.0, r"bytes:\xa9": -3.0}
    content = chat_logprobs(bytes_tokenizer, scores)["content"]
    assert bytes(byte for entry in content for byte in entry["bytes"]).decode() == text
