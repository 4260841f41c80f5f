"""Texts and conversations to tokens and back, as `/tokenize` and its kin answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from pliant.runtime.chat import plain_chat
from pliant.runtime.tokenizer import Tokenizer
from pliant.serve.api.errors import bad_request
from pliant.serve.api.fields import Fields
from pliant.serve.api.messages import read_messages, read_tools
from pliant.serve.api.schemas import MAX_DETOKENIZED


class Tokenizing(msgspec.Struct, frozen=True):
    """A body that was read: the `model` it names, the fields it has in vain, and the work."""

    model: str
    unknown: tuple[str, ...]
    run: Callable[[Tokenizer], Mapping[str, Any]]


def read_tokenize(body: bytes) -> Tokenizing:
    """`prompt` (or `content`), a text, or `messages` as a chat would have them; 400 for neither."""
    fields = Fields.parse(body)
    texts = [name for name in ("prompt", "content") if fields.raw(name) is not None]
    model, pieces = fields.text("model"), fields.flag("return_token_strs")
    encode = _chat(fields) if fields.raw("messages") is not None else None
    if (encode is not None) + len(texts) != 1:
        raise bad_request("Send one of prompt, content and messages.", param="prompt")
    if encode is None:
        encode = _text(fields, texts[0])

    def run(tokenizer: Tokenizer) -> Mapping[str, Any]:
        tokens = encode(tokenizer)
        found = {"tokens": tokens, "count": len(tokens)}
        if pieces:
            found["token_strs"] = [
                tokenizer.token_bytes(token).decode("utf-8", "replace") for token in tokens
            ]
        return found

    return Tokenizing(model, tuple(fields.unknown()), run)


def read_detokenize(body: bytes, vocab_size: int) -> Tokenizing:
    """`tokens` of a model with `vocab_size` of them."""
    fields = Fields.parse(body)
    model, tokens = fields.text("model"), fields.items("tokens", MAX_DETOKENIZED)
    if fields.raw("tokens") is None:
        raise bad_request("tokens is missing; send a list of token ids.", param="tokens")
    if not all(type(token) is int and 0 <= token < vocab_size for token in tokens):
        raise fields.wrong("tokens", f"a list of token ids from 0 to {vocab_size - 1}")

    def run(tokenizer: Tokenizer) -> Mapping[str, Any]:
        text = tokenizer.decode(tokens, skip_special=False)
        return {"prompt": text, "content": text}

    return Tokenizing(model, tuple(fields.unknown()), run)


def describe_tokenizer(tokenizer: Tokenizer) -> dict[str, Any]:
    """Special tokens and the chat template, which evaluation programs ask for."""
    kinds = ("bos_token", "eos_token", "pad_token", "unk_token")
    names = {name: tokenizer.special_tokens.get(name) for name in kinds}
    if names["eos_token"] is None and tokenizer.eos_ids:
        names["eos_token"] = tokenizer.decode([min(tokenizer.eos_ids)], skip_special=False)
    template = tokenizer.chat_template
    source = None if template is None else template.templates.get("default")
    return {**names, "chat_template": source}


def _text(fields: Fields, name: str) -> Callable[[Tokenizer], Sequence[int]]:
    text, special = fields.text(name), fields.flag("add_special_tokens", True)
    return lambda tokenizer: tokenizer.encode(text, add_bos=None if special else False)


def _chat(fields: Fields) -> Callable[[Tokenizer], Sequence[int]]:
    messages, (tools, _) = read_messages(fields), read_tools(fields)
    header = fields.flag("add_generation_prompt", True)
    variables = fields.raw("chat_template_kwargs")
    variables = {} if variables is None else variables
    if not isinstance(variables, dict):
        raise fields.wrong("chat_template_kwargs", "an object")

    def encode(tokenizer: Tokenizer) -> Sequence[int]:
        if tokenizer.chat_template is None:
            text = plain_chat(messages)
            return tokenizer.encode(text if header else text.removesuffix("Assistant:"))
        return tokenizer.apply_chat_template(
            messages, add_generation_prompt=header, tools=tools or None, variables=variables
        )

    return encode
