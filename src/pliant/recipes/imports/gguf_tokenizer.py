"""The tokenizer.json that reads texts as the vocabulary of a GGUF file does."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

from pliant.errors import CheckpointError, UnsupportedError
from pliant.export.gguf_vocabulary import NAMED_SPLITS

_CONTROL, _USER_DEFINED, _UNUSED = 3, 4, 5
_PLAIN_NAME = re.compile(r"[^\s:$]+")
#: Every cut of a token is looked up: characters copied for it, a second's work. A vocabulary of
#: 256 000 usual pieces takes some 2^24.
_MOST_CUT = 1 << 30


def tokenizer_of(metadata: Mapping[str, Any], vocab_size: int) -> tokenizers.Tokenizer:
    """The tokenizer of a file's metadata.

    `UnsupportedError` for a kind that is not read, `CheckpointError` for tables that are missing or
    disagree.
    """
    tokens = _strings(metadata, "tokens")
    special_token_ids(metadata, len(tokens))
    kinds = metadata.get("tokenizer.ggml.token_type", [1] * len(tokens))
    if len(tokens) != vocab_size or not isinstance(kinds, list) or len(kinds) != len(tokens):
        raise CheckpointError(
            f"The vocabulary has {len(tokens)} tokens and the embedding {vocab_size} rows, or "
            "kinds are missing; the file is damaged."
        )
    model = metadata.get("tokenizer.ggml.model")
    match model:
        case "gpt2":
            backend = _byte_level(metadata, tokens)
        case "llama":
            backend = _by_scores(metadata, tokens)
        case other:
            raise UnsupportedError(f"The tokenizer {other!r} of a GGUF file is not read here.")
    added = [
        AddedToken(token, special=kind == _CONTROL, normalized=False)
        for token, kind in zip(tokens, kinds, strict=True)
        if kind in (_CONTROL, _USER_DEFINED)
    ]
    backend.add_tokens(added)
    bos = metadata.get("tokenizer.ggml.bos_token_id")
    # Mergers by scores put BOS first unless told otherwise.
    if bos is not None and metadata.get("tokenizer.ggml.add_bos_token", model == "llama"):
        name = tokens[bos]
        # In the language of templates a name may not look like another part of one.
        label = name if _PLAIN_NAME.fullmatch(name) else "bos"
        backend.post_processor = processors.TemplateProcessing(
            single=f"{label} $A",
            special_tokens=[{"id": label, "ids": [bos], "tokens": [name]}],
        )
    return backend


def special_token_ids(metadata: Mapping[str, Any], num_tokens: int) -> dict[str, int]:
    """Ids of `bos`, `eos`, `unk` and `pad` where the file names them, all of them tokens."""
    found = {}
    for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        index = metadata.get(f"tokenizer.ggml.{theirs}_token_id")
        if index is None:
            continue
        if type(index) is not int or not 0 <= index < num_tokens:
            raise CheckpointError(
                f"The {theirs} token of the file is {index!r}, none of {num_tokens}; it is damaged."
            )
        found[ours] = index
    return found


def _byte_level(metadata: Mapping[str, Any], tokens: Sequence[str]) -> tokenizers.Tokenizer:
    """BPE over bytes, split as the name of the file's split says."""
    known = set(tokens)
    # A merge that makes no token is never seen in the ids.
    merges = [
        tuple(merge.split(" ", 1))
        for merge in _strings(metadata, "merges")
        if merge.replace(" ", "", 1) in known
    ]
    split = metadata.get("tokenizer.ggml.pre", "default")
    regexes = {name: regex for regex, name in NAMED_SPLITS.items()}
    steps: list[Any]
    match split:
        case "gpt-2":
            steps = [pre_tokenizers.ByteLevel(add_prefix_space=False)]
        case "smollm":
            digits = pre_tokenizers.Digits(individual_digits=True)
            steps = [digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]
        case str() if split in regexes:
            pattern = pre_tokenizers.Split(tokenizers.Regex(regexes[split]), "isolated")
            plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
            steps = [pattern, plain]
        case _:
            raise UnsupportedError(
                f"The file splits texts in the way {split!r}; known are gpt-2, smollm and "
                f"{', '.join(regexes)}. Build from the Hugging Face folder of the model."
            )
    backend = tokenizers.Tokenizer(_bpe(tokens, merges, ignore_merges=split == "llama-bpe"))
    backend.pre_tokenizer = steps[0] if len(steps) == 1 else pre_tokenizers.Sequence(steps)
    backend.decoder = decoders.ByteLevel()
    return backend


def _by_scores(metadata: Mapping[str, Any], tokens: Sequence[str]) -> tokenizers.Tokenizer:
    """A merger by scores as BPE: every pair that makes a token, the best scores first."""
    scores: Any = metadata.get("tokenizer.ggml.scores")
    are_numbers = isinstance(scores, list) and all(isinstance(one, float) for one in scores)
    if not are_numbers or len(scores) != len(tokens):
        raise CheckpointError("The tokens of the file have no scores; it is damaged.")
    if sum(len(token) ** 2 for token in tokens) > _MOST_CUT:
        raise CheckpointError("The tokens of the file are longer than any pieces; it is damaged.")
    place = {token: index for index, token in enumerate(tokens)}
    merges = [
        (-scores[place[token]], place[token[:cut]], place[token[cut:]], token[:cut], token[cut:])
        for token in place
        for cut in range(1, len(token))
        if token[:cut] in place and token[cut:] in place
    ]
    merges.sort()
    pairs = [(left, right) for _, _, _, left, right in merges]
    unknown = special_token_ids(metadata, len(tokens)).get("unk", 0)
    backend = tokenizers.Tokenizer(
        _bpe(tokens, pairs, unk_token=tokens[unknown], fuse_unk=True, byte_fallback=True)
    )
    prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
    mark = normalizers.Replace(" ", "▁")
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), mark]) if prefix else mark
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, *([decoders.Strip(" ", 1, 0)] if prefix else [])])
    return backend


def _bpe(tokens: Sequence[str], merges: Any, **options: Any) -> models.BPE:
    vocabulary = {token: index for index, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        raise CheckpointError("The vocabulary of the file has a token twice; it is damaged.")
    try:
        return models.BPE(vocab=vocabulary, merges=merges, **options)
    except Exception as error:  # the library raises its root error
        raise CheckpointError(f"The merges of the file are damaged: {error}.") from error


def _strings(metadata: Mapping[str, Any], name: str) -> list[str]:
    found = metadata.get(f"tokenizer.ggml.{name}")
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise CheckpointError(f"The file has no tokenizer.ggml.{name}; it is damaged.")
    return found
