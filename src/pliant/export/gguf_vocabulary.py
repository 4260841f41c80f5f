"""The vocabulary of a GGUF file: which of llama.cpp's tokenizers equals ours, and its tables.

llama.cpp has its own tokenizers: byte-level BPE ("gpt2"), whose regular expression is chosen by a
name, and a merger by scores ("llama") in the manner of SentencePiece. A `tokenizer.json` is matched
to one of them; what matches none is refused: a model that reads other tokens is another model.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from pliant.errors import UnsupportedError
from pliant.runtime import Tokenizer

#: Kinds of tokens as GGUF numbers them.
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
_NO_MERGE = -1e9
#: llama.cpp wants one merge at least. Two zero bytes become no token, and so are read one by one.
_IDLE_MERGES = ("\u0100 \u0100",)

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
#: Regular expressions that split a text before byte-level BPE, and llama.cpp's names for them.
NAMED_SPLITS = {
    _CONTRACTIONS + _WORDS + r"\p{N}{1,3}" + _REST: "llama-bpe",
    _CONTRACTIONS + _WORDS + r"\p{N}" + _REST: "qwen2",
}


class Vocabulary(msgspec.Struct, frozen=True, kw_only=True):
    """The tables of `tokenizer.ggml.*`.

    `model` is llama.cpp's tokenizer, `pre` the name of its split ("" for the merger by scores).
    `tokens`, `scores` and `kinds` have an entry for each row of the embedding.
    """

    model: str
    pre: str
    tokens: tuple[str, ...]
    kinds: tuple[int, ...]
    scores: tuple[float, ...]
    merges: tuple[str, ...]
    add_bos: bool
    add_space_prefix: bool


def gguf_vocabulary(tokenizer: Tokenizer, vocab_size: int) -> Vocabulary:
    """The vocabulary that makes llama.cpp read texts as `tokenizer` does.

    `UnsupportedError` for a tokenizer that llama.cpp has no equal of, with what is different.
    """
    definition = tokenizer.definition()
    model = definition["model"]
    if model["type"] != "BPE":
        raise _unlike(f"its model is {model['type']}", "BPE")
    merges = [tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ", 1))
              for merge in model["merges"]]  # fmt: skip
    is_byte_level = "ByteLevel" in _kinds(definition.get("pre_tokenizer"))
    tokens, kinds = _tokens(definition, vocab_size)
    common: dict[str, Any] = {
        "tokens": tokens,
        "kinds": kinds,
        "add_bos": tokenizer.bos_id is not None and tokenizer.encode("")[:1] == [tokenizer.bos_id],
    }
    if is_byte_level:
        return Vocabulary(
            model="gpt2", pre=_split_name(definition["pre_tokenizer"]), scores=(),
            merges=tuple(" ".join(merge) for merge in merges) or _IDLE_MERGES,
            add_space_prefix=False, **common,
        )  # fmt: skip
    if not model.get("byte_fallback"):
        raise _unlike("it is neither byte-level nor falls back on bytes", "tokens for all bytes")
    return Vocabulary(
        model="llama", pre="", merges=(), scores=_scores(tokens, merges),
        add_space_prefix=_adds_space(definition), **common,
    )  # fmt: skip


def _tokens(definition: dict[str, Any], vocab_size: int) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Texts and kinds of all tokens; rows of the embedding without a token are unused."""
    texts = [f"[PAD{index}]" for index in range(vocab_size)]
    kinds = [_UNUSED] * vocab_size
    model = definition["model"]
    for text, index in model["vocab"].items():
        _require_row(index, vocab_size, text)
        is_byte = model.get("byte_fallback") and _BYTE_TOKEN.fullmatch(text)
        texts[index], kinds[index] = text, _BYTE if is_byte else _NORMAL
    for token in definition["added_tokens"]:
        index = token["id"]
        _require_row(index, vocab_size, token["content"])
        texts[index] = token["content"]
        kinds[index] = _CONTROL if token["special"] else _USER_DEFINED
    unknown = model.get("unk_token")
    if unknown is not None and unknown in model["vocab"]:
        kinds[model["vocab"][unknown]] = _UNKNOWN
    return tuple(texts), tuple(kinds)


def _require_row(index: int, vocab_size: int, text: str) -> None:
    if not 0 <= index < vocab_size:
        raise UnsupportedError(
            f"The token {text!r} has the number {index} and the embedding has {vocab_size} rows; "
            "GGUF gives every token a row. Remove the token from the tokenizer."
        )


def _scores(tokens: tuple[str, ...], merges: list[tuple[str, ...]]) -> tuple[float, ...]:
    """Minus the rank of the first merge that makes a token: the best score is merged first."""
    rank: dict[str, int] = {}
    for place, pair in enumerate(merges):
        rank.setdefault("".join(pair), place)
    return tuple(float(-rank[token]) if token in rank else _NO_MERGE for token in tokens)


def _steps(part: Any) -> list[dict[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, one by one."""
    if not part:
        return []
    inner = part.get("normalizers") or part.get("pretokenizers")
    return [step for one in inner for step in _steps(one)] if inner else [part]


def _kinds(part: Any) -> list[str]:
    return [step["type"] for step in _steps(part)]


def _split_name(pre_tokenizer: Any) -> str:
    """llama.cpp's name for how a byte-level tokenizer splits a text."""
    steps = _steps(pre_tokenizer)
    if any(step.get("add_prefix_space") for step in steps):
        raise _unlike("it puts a space before a text", "byte-level BPE without")
    match steps:
        case [{"type": "ByteLevel", "use_regex": True}]:
            return "gpt-2"
        case [{"type": "Digits", "individual_digits": True},
              {"type": "ByteLevel", "use_regex": True}]:  # fmt: skip
            return "smollm"
        case [{"type": "Split", "pattern": {"Regex": regex}}, {"type": "ByteLevel"}]:
            if regex in NAMED_SPLITS:
                return NAMED_SPLITS[regex]
            raise _unlike(f"it splits texts by {regex!r}", "the splits of Llama 3 and Qwen 2")
    raise _unlike(f"it splits texts by {' and '.join(_kinds(pre_tokenizer))}", "byte-level splits")


def _adds_space(definition: dict[str, Any]) -> bool:
    """Whether a merger by scores begins a text with a space."""
    for step in _steps(definition.get("normalizer")):
        if step["type"] == "Prepend":
            return True
    for step in _steps(definition.get("pre_tokenizer")):
        if step["type"] == "Metaspace":
            return bool(step.get("prepend_scheme", "always") != "never")
    return False


def _unlike(found: str, known: str) -> UnsupportedError:
    return UnsupportedError(
        f"llama.cpp has no equal of this tokenizer: {found}, and it knows {known}. Export to hf "
        "instead."
    )
