"""Which bytes each token stands for, read from the decoder of a `tokenizer.json`.

Text is streamed token by token, but a character may span tokens. With the bytes of each token at
hand the exact text of a prefix is known without decoding everything again for every token.
"""

from __future__ import annotations

import json
import re
from typing import Any

import tokenizers

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_level_alphabet() -> dict[str, int]:
    """The printable character that stands for each byte in byte-level BPE (GPT-2's table)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    # The bytes without a printable form follow each other from U+0100 on.
    alphabet.update({chr(0x100 + place): byte for place, byte in enumerate(others)})
    return alphabet


_BYTE_LEVEL = _byte_level_alphabet()


class TokenBytes:
    """Bytes of every token of one tokenizer, computed when first asked for.

    `strip_start` is the number of leading spaces that the decoder removes from a whole text;
    `joins_first` says that the word mark of the first token of a text stands for nothing.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, steps: list[dict[str, Any]]) -> None:
        self._tokenizer = tokenizer
        kinds = [step["type"] for step in steps]
        self._byte_level = "ByteLevel" in kinds
        self._byte_fallback = "ByteFallback" in kinds
        self._replacements = [
            (step["pattern"]["String"], step["content"])
            for step in steps
            if step["type"] == "Replace"
        ]
        self.strip_start = sum(step["start"] for step in steps if step["type"] == "Strip")
        self.joins_first = False
        for step in steps:
            if step["type"] == "Metaspace":
                self._replacements.append((step["replacement"], " "))
                self.joins_first = step.get("prepend_scheme", "always") != "never"
                self._word_mark: str = step["replacement"]
        self._known: dict[int, bytes] = {}

    @classmethod
    def of(cls, tokenizer: tokenizers.Tokenizer) -> TokenBytes | None:
        """The bytes of the tokens, or None where the decoder is of a kind that mixes tokens."""
        if tokenizer.decoder is None:
            return None
        decoder = json.loads(tokenizer.decoder.__getstate__())
        steps = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
        return cls(tokenizer, steps) if _is_bytewise(steps) else None

    def __call__(self, token: int, *, first: bool = False) -> bytes:
        """Bytes of `token`; `first` where it is the first token of a text."""
        if first and self.joins_first:
            text = self._tokenizer.id_to_token(token) or ""
            return text.replace(self._word_mark, "").encode()
        known = self._known.get(token)
        if known is None:
            known = self._known[token] = self._compute(self._tokenizer.id_to_token(token) or "")
        return known

    def _compute(self, text: str) -> bytes:
        if self._byte_level:
            if all(character in _BYTE_LEVEL for character in text):
                return bytes(_BYTE_LEVEL[character] for character in text)
            return text.encode()
        byte = _BYTE_TOKEN.fullmatch(text) if self._byte_fallback else None
        if byte is not None:
            return bytes([int(byte[1], 16)])
        for old, new in self._replacements:
            text = text.replace(old, new)
        return text.encode()


def _is_bytewise(steps: list[dict[str, Any]]) -> bool:
    """Whether these decoder steps treat each token by itself, but for a strip of the whole."""
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"]:
        return True
    fused = kinds.index("Fuse") if "Fuse" in kinds else len(kinds)
    for place, step in enumerate(steps):
        match step["type"]:
            case "Replace" if "String" in step["pattern"]:
                continue
            case "ByteFallback" | "Fuse":
                continue
            case "Metaspace" if step.get("split", True) is not None and len(step["replacement"]):
                continue
            case "Strip" if place > fused and step["content"] == " " and step["stop"] == 0:
                continue
        return False
    # A strip and a word mark that is dropped would act on each other; no tokenizer has both.
    return not ("Strip" in kinds and "Metaspace" in kinds)
