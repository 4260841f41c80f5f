"""`Tokenizer`: text to token ids and back, as `transformers` does it, without `transformers`."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tokenizers

from pliant.errors import CheckpointError, DataError, UnsupportedError
from pliant.runtime.chat import ChatTemplate, Message
from pliant.runtime.side_file import is_there
from pliant.runtime.token_bytes import TokenBytes

_TOKENIZER_FILE, _MAP_FILE = "tokenizer.json", "special_tokens_map.json"
#: Vocabularies that are no tokenizer.json, and what each of them is.
_OTHER_FILES = {
    "tokenizer.model": "a SentencePiece or tiktoken model",
    "tekken.json": "a Mistral tekken vocabulary",
    "vocab.json": "a vocabulary with merges",
}


class Tokenizer:
    """Encodes, decodes and streams the text of one model; knows its start and end tokens.

    `bos_id` is the token that begins a text, None where the model has none; `eos_ids` are all
    tokens that end one; `special_tokens` maps `bos_token`, `eos_token`, ... to their texts.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        special_tokens: Mapping[str, str] | None = None,
        bos_id: int | None = None,
        eos_ids: Iterable[int] = (),
        chat_template: ChatTemplate | None = None,
    ) -> None:
        # transformers asks for no truncation and no padding on each call, whatever the file says.
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._bytes = TokenBytes.of(backend)
        added = backend.get_added_tokens_decoder()
        self._special_ids = frozenset(index for index, token in added.items() if token.special)
        self.special_tokens = dict(special_tokens or {})
        self.bos_id = bos_id
        self.eos_ids = frozenset(eos_ids)
        self.chat_template = chat_template

    @classmethod
    def load(cls, folder: Path | str, listed: Container[str] | None = None) -> Tokenizer:
        """The tokenizer in a checkpoint or artifact folder.

        Reads `tokenizer.json`, and where they exist `tokenizer_config.json`,
        `special_tokens_map.json`, `chat_template.jinja`, `generation_config.json`, `config.json`.
        With `listed`, the files of an artifact's manifest, those of other names are not there.
        Raises `UnsupportedError` where the folder has a vocabulary of another kind only, and
        `CheckpointError` where a file is missing or damaged.
        """
        folder = Path(folder)
        backend = _read_backend(folder, listed)
        config = _read_json(folder / "tokenizer_config.json", listed)
        tokens = _special_tokens(config, lambda: _read_json(folder / _MAP_FILE, listed))
        _add_tokens(backend, config, tokens)
        texts = {name: token.content for name, token in tokens.items()}
        names = ("generation_config.json", "config.json")
        configs = [_read_json(folder / name, listed) for name in names]
        bos_id = _first_id(
            [backend.token_to_id(texts["bos_token"])] if "bos_token" in texts else [],
            *(_ids(config, "bos_token_id") for config in configs),
        )
        eos_ids = {index for config in configs for index in _ids(config, "eos_token_id")}
        named_eos = backend.token_to_id(texts["eos_token"]) if "eos_token" in texts else None
        eos_ids |= set() if named_eos is None else {named_eos}
        return cls(
            backend,
            special_tokens=texts,
            bos_id=bos_id,
            eos_ids=eos_ids,
            chat_template=ChatTemplate.read(folder, config, listed),
        )

    @property
    def vocab_size(self) -> int:
        """Tokens with a text, added ones included; a model's `vocab_size` may be larger."""
        return int(self._backend.get_vocab_size(with_added_tokens=True))

    @property
    def start_id(self) -> int | None:
        """The token that stands before a text that has nothing before it: BOS, or else EOS."""
        return self.bos_id if self.bos_id is not None else min(self.eos_ids, default=None)

    def definition(self) -> dict[str, Any]:
        """This tokenizer as the object of a tokenizer.json, tokens of its configuration added."""
        content: dict[str, Any] = json.loads(self._backend.to_str())
        return content

    def encode(self, text: str, add_bos: bool | None = None) -> list[int]:
        """Token ids of `text`; special tokens written in it become themselves.

        `add_bos=None` adds what the tokenizer's post-processor adds, as `transformers` does (its
        `add_bos_token` has no say beside a tokenizer.json); True makes sure that BOS is first
        where the model has one; False adds nothing. Raises `DataError` where `text` holds lone
        surrogates, which is how Python shows bytes that were not UTF-8, and `CheckpointError` for a
        tokenizer that loads and cannot read.
        """
        _check_unicode(text)
        with _faults("reads no text"):
            ids: list[int] = self._backend.encode(text, add_special_tokens=add_bos is not False).ids
        if add_bos and self.bos_id is not None and ids[:1] != [self.bos_id]:
            ids.insert(0, self.bos_id)
        return ids

    def decode(self, tokens: Sequence[int], *, skip_special: bool = True) -> str:
        """The text of `tokens`, without special tokens unless `skip_special` is False.

        Bytes that are no UTF-8 become U+FFFD. Where a byte-fallback tokenizer wrote a valid
        character beside invalid bytes, the character survives (the `tokenizers` library replaces
        the whole run), so that a text does not depend on how it was streamed.
        """
        decoder = self.decoder(skip_special=skip_special)
        return "".join([*map(decoder.push, tokens), decoder.finish()])

    def token_bytes(self, token: int) -> bytes:
        """The bytes of one token within a text, of a special one its name; none for unknown ids.

        Where tokens have no bytes of their own (WordPiece), what the library decodes it to.
        """
        if self._bytes is not None:
            return self._bytes(token)
        with _faults("writes no text"):
            return str(self._backend.decode([token], skip_special_tokens=False)).encode()

    def is_special(self, token: int) -> bool:
        """Whether a token is a mark and not a part of texts."""
        return token in self._special_ids

    def decoder(self, *, skip_special: bool = True, continues: bool = False) -> StreamingDecoder:
        """A decoder for tokens that arrive one by one.

        `continues` says that the tokens follow a text, so that the space which belongs to the
        first word is kept.
        """
        skipped = self._special_ids if skip_special else frozenset()
        if self._bytes is not None:
            return BytewiseDecoder(self._bytes, skipped, continues=continues)
        return WholeTextDecoder(self._backend, skipped)

    def apply_chat_template(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, object]] | None = None,
        variables: Mapping[str, object] | None = None,
    ) -> list[int]:
        """Token ids of a conversation, equal to `transformers`' `apply_chat_template`.

        `add_generation_prompt` ends with the header of an answer; `variables` are further names
        that the template knows, such as `enable_thinking`. Raises `GenerationError` where there
        is no template or the template refuses.
        """
        text = self.render_chat(
            messages,
            add_generation_prompt=add_generation_prompt,
            tools=tools,
            variables=variables,
        )
        # The template writes BOS itself where the model wants it.
        return self.encode(text, add_bos=False)

    def render_chat(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, object]] | None = None,
        variables: Mapping[str, object] | None = None,
    ) -> str:
        """The text that `apply_chat_template` encodes."""
        template = self.chat_template or ChatTemplate({})
        return template.render(
            messages,
            add_generation_prompt=add_generation_prompt,
            tools=tools,
            variables={**self.special_tokens, **(variables or {})},
        )


class StreamingDecoder:
    """Turns tokens into text as they come; the pieces joined are the text of all tokens.

    A piece never ends within a character: what is incomplete waits for the next token or for
    `finish`, which writes U+FFFD for what never became one.
    """

    def push(self, token: int) -> str:
        """The text that became certain with `token`; often empty."""
        raise NotImplementedError

    def finish(self) -> str:
        """What is left at the end; the decoder is used up afterwards."""
        raise NotImplementedError


class BytewiseDecoder(StreamingDecoder):
    """For tokenizers whose tokens stand for bytes of their own: byte-level and SentencePiece."""

    def __init__(
        self, token_bytes: TokenBytes, skipped: frozenset[int], *, continues: bool = False
    ) -> None:
        self._bytes = token_bytes
        self._skipped = skipped
        self._first = not continues
        self._strip = 0 if continues else token_bytes.strip_start
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The text that became certain with `token`."""
        if token in self._skipped:
            return ""
        new = self._bytes(token, first=self._first)
        self._first = False
        while self._strip and new.startswith(b" "):
            new, self._strip = new[1:], self._strip - 1
        if new:
            self._strip = 0
        return self._utf8.decode(new)

    def finish(self) -> str:
        """U+FFFD for an incomplete character, else nothing."""
        return self._utf8.decode(b"", final=True)


class WholeTextDecoder(StreamingDecoder):
    """For all other tokenizers: decodes everything again and gives what is new and settled."""

    def __init__(self, backend: tokenizers.Tokenizer, skipped: frozenset[int]) -> None:
        self._backend = backend
        self._skipped = skipped
        self._tokens: list[int] = []
        self._given = ""

    def push(self, token: int) -> str:
        """The text that became certain with `token`."""
        if token not in self._skipped:
            self._tokens.append(token)
        text = self._text()
        # A text that ends in U+FFFD or does not continue the last one is not settled yet.
        if text.endswith("\ufffd") or not text.startswith(self._given):
            return ""
        return self._give(text)

    def finish(self) -> str:
        """What was still unsettled."""
        return self._give(self._text())

    def _text(self) -> str:
        with _faults("writes no text"):
            return str(self._backend.decode(self._tokens, skip_special_tokens=False))

    def _give(self, text: str) -> str:
        new, self._given = text[len(self._given) :], text
        return new


def _check_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"The text is not valid UTF-8: character {error.start} of {len(text)} is the lone "
            f"surrogate {text[error.start]!a}. Convert the text to UTF-8 first."
        ) from error


def _read_json(path: Path, listed: Container[str] | None) -> dict[str, Any]:
    """The object in a JSON file; empty where there is no file."""
    if not is_there(path, listed):
        return {}
    try:
        content = json.loads(path.read_bytes())
        # Lone surrogates, which JSON can write and no tokenizer takes.
        json.dumps(content, ensure_ascii=False).encode()
    except (ValueError, RecursionError, OSError) as error:
        raise CheckpointError(
            f"{path} is not readable JSON: {error}. Copy it again from its source."
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}; an object is expected.")
    return content


def _read_backend(folder: Path, listed: Container[str] | None) -> tokenizers.Tokenizer:
    path = folder / _TOKENIZER_FILE
    if not is_there(path, listed):
        for name, kind in _OTHER_FILES.items():
            if (folder / name).exists():
                raise UnsupportedError(
                    f"{folder} has no {_TOKENIZER_FILE}, only {name}, {kind}. Convert it once with "
                    f"transformers: AutoTokenizer.from_pretrained({str(folder)!r})"
                    f".save_pretrained({str(folder)!r})."
                )
        raise CheckpointError(f"{folder} has no {_TOKENIZER_FILE}; copy it from the source.")
    with _faults(f"in {path} is not a tokenizer that the tokenizers library reads"):
        return tokenizers.Tokenizer.from_file(str(path))


@contextmanager
def _faults(what: str) -> Iterator[None]:
    """Whatever the tokenizers library raises as a `CheckpointError`: the file it was given is to
    blame.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of the Rust library is no Exception
        raise CheckpointError(
            f"The {_TOKENIZER_FILE} {what}: {error}. Copy it again from its source."
        ) from error


def _special_tokens(
    config: Mapping[str, Any], read_map: Callable[[], dict[str, Any]]
) -> dict[str, tokenizers.AddedToken]:
    """Every `*_token` of the configuration by its name; a token is a text or an object."""
    named = {key: value for key, value in config.items() if key.endswith("_token")}
    if "added_tokens_decoder" not in config:
        # The older place, which transformers asks only where the newer one is not used.
        others = read_map().items()
        named.update({key: value for key, value in others if key.endswith("_token")})
    extra = config.get("extra_special_tokens")
    if isinstance(extra, dict):
        named.update(extra)
    tokens = {name: _added_token(value) for name, value in named.items()}
    return {name: token for name, token in tokens.items() if token is not None}


def _added_token(value: object) -> tokenizers.AddedToken | None:
    """A token written as its text or as an object with `content`; None for anything else."""
    if isinstance(value, str):
        return tokenizers.AddedToken(value, special=True, normalized=False)
    if isinstance(value, dict) and isinstance(value.get("content"), str):
        names = ("lstrip", "rstrip", "single_word", "normalized")
        flags = {name: bool(value[name]) for name in names if name in value}
        special = bool(value.get("special", True))
        return tokenizers.AddedToken(value["content"], special=special, **flags)
    return None


def _add_tokens(
    backend: tokenizers.Tokenizer,
    config: Mapping[str, Any],
    special: Mapping[str, tokenizers.AddedToken],
) -> None:
    """Add the tokens that the configuration names beyond tokenizer.json, as transformers does."""
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    listed = config.get("added_tokens_decoder") or {}
    if not isinstance(listed, dict) or not all(key.isdecimal() and len(key) < 20 for key in listed):
        raise CheckpointError(
            "The added_tokens_decoder of tokenizer_config.json is no object of token ids; copy the "
            "file again from its source."
        )
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    tokens = [_added_token(listed[key]) for key in sorted(listed, key=int)]
    tokens += [*special.values()]
    tokens += [_added_token(value) for value in extra] if isinstance(extra, list) else []
    for token in tokens:
        if token is not None and token.content not in known:
            backend.add_tokens([token])
            known.add(token.content)


def _ids(config: Mapping[str, Any], key: str) -> list[int]:
    """The token ids under `key`, which may be one, a list, or none."""
    value = config.get(key)
    values = value if isinstance(value, list) else [value]
    return [item for item in values if type(item) is int and item >= 0]


def _first_id(*lists: list[int | None] | list[int]) -> int | None:
    return next((item for items in lists for item in items if item is not None), None)
