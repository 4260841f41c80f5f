"""`GrammarCompiler`: JSON schemas as masks on the next token, by the library llguidance."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pliant.errors import GenerationError, UnsupportedError
from pliant.runtime.tokenizer import Tokenizer

#: Any JSON object, as `response_format: {"type": "json_object"}` asks for.
ANY_OBJECT: Mapping[str, Any] = {"type": "object"}
#: Characters of a schema: far above real ones, far below what compiling could take minutes for.
MAX_SCHEMA_CHARACTERS = 50_000


class Grammar:
    """What one text may go on with; `accept` each token that was chosen."""

    def __init__(self, matcher: Any, vocab_size: int) -> None:
        self._matcher = matcher
        self._bits: NDArray[np.int32] = np.zeros((1, (vocab_size + 31) // 32), np.int32)

    def allowed(self) -> NDArray[np.uint32]:
        """A bit for each token that may be next, the lowest first, `[words]`; until asked again."""
        import llguidance.numpy

        llguidance.numpy.fill_next_token_bitmask(self._matcher, self._bits)
        self._check()
        bits: NDArray[np.uint32] = self._bits[0].view(np.uint32)
        return bits

    def accept(self, token: int) -> None:
        """The text goes on with `token`."""
        self._matcher.consume_token(token)
        self._check()

    @property
    def is_complete(self) -> bool:
        """Whether nothing but the end may follow."""
        return bool(self._matcher.is_stopped())

    def _check(self) -> None:
        if self._matcher.is_error():
            raise GenerationError(f"The grammar cannot go on: {self._matcher.get_error()}.")


class _Vocabulary:
    """A tokenizer as llguidance reads it."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self.eos_token_id = min(tokenizer.eos_ids)
        self.bos_token_id = tokenizer.bos_id
        self.tokens = [tokenizer.token_bytes(token) for token in range(vocab_size)]
        special = {token for token in range(vocab_size) if tokenizer.is_special(token)}
        self.special_token_ids = sorted(special | tokenizer.eos_ids)
        self._tokenizer = tokenizer

    def __call__(self, text: str | bytes) -> list[int]:
        readable = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
        return self._tokenizer.encode(readable, add_bos=False)


class GrammarCompiler:
    """Compiles schemas for one tokenizer; its vocabulary is prepared when first asked for."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._tokenizer, self._vocab_size = tokenizer, vocab_size
        self._prepared: Any = None

    def compile(self, schema: Mapping[str, Any]) -> Grammar:
        """The grammar of texts that are JSON of `schema`.

        Raises `GenerationError` for a schema that is none or that is too large, and
        `UnsupportedError` where llguidance is not installed or the model has no end token.
        """
        guidance = self._library()
        text = json.dumps(schema)
        if len(text) > MAX_SCHEMA_CHARACTERS:
            raise GenerationError(
                f"The JSON schema has {len(text)} characters; {MAX_SCHEMA_CHARACTERS} are the most."
            )
        try:
            # Spaces between tokens of JSON are left out: a model could write them for ever.
            grammar = guidance.LLMatcher.grammar_from_json_schema(
                text, overrides={"whitespace_flexible": False}
            )
        except ValueError as error:
            raise GenerationError(f"The JSON schema cannot be used: {error}.") from error
        matcher = guidance.LLMatcher(self._prepared, grammar, log_level=0)
        if matcher.is_error():
            reason = " ".join(matcher.get_error().split())
            raise GenerationError(f"The JSON schema cannot be used: {reason}.")
        return Grammar(matcher, self._vocab_size)

    def _library(self) -> Any:
        try:
            import llguidance
        except ImportError as error:
            raise UnsupportedError(
                "JSON schemas and tools need llguidance; run pip install 'pliant[serve]'."
            ) from error
        if not self._tokenizer.eos_ids:
            raise UnsupportedError("This model has no token that ends a text, so no JSON ends.")
        if self._prepared is None:
            vocabulary: Any = _Vocabulary(self._tokenizer, self._vocab_size)
            self._prepared = llguidance.LLTokenizer(
                llguidance.TokenizerWrapper(vocabulary),
                n_vocab=self._vocab_size,
                eos_token=sorted(self._tokenizer.eos_ids),
            )
        return llguidance
