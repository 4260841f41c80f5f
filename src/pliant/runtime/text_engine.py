"""The facade: `Pliant`, an opened artifact, and `TextEngine`, one subnet of it that writes text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from pliant.artifact import Artifact
from pliant.bits.cache import CacheType
from pliant.errors import UsageError
from pliant.runtime.assembly import Activations, Preload
from pliant.runtime.chat import Message, plain_chat
from pliant.runtime.engine import Engine
from pliant.runtime.generation import Generation, TextStream, generate_batch, stream
from pliant.runtime.sampling import SamplingOptions
from pliant.runtime.switching import Entries, Switch
from pliant.runtime.tokenizer import Tokenizer
from pliant.subnet import Subnet

Prompt = str | Sequence[int]


class TextEngine:
    """A subnet ready to write: `engine` computes logits, `tokenizer` speaks for people.

    Every method takes `SamplingOptions` or their fields by name:
    `engine.generate("Once upon a time", max_tokens=100, temperature=0.8, seed=7)`.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        resolve: Callable[[str], Subnet] | None = None,
    ) -> None:
        self.engine = engine
        self.tokenizer = tokenizer
        self._resolve = resolve

    @property
    def subnet(self) -> Subnet:
        """The subnet that runs."""
        return self.engine.subnet

    def generate(
        self, prompt: Prompt, options: SamplingOptions | None = None, **named: Any
    ) -> Generation:
        """Write on from `prompt`, a text or token ids, to the end; greedy unless told otherwise.

        The text does not repeat the prompt. Raises `GenerationError` for a prompt longer than the
        context or an option out of its range, `UsageError` for an option that does not exist.
        """
        return self.stream(prompt, options, **named).generation

    def stream(
        self, prompt: Prompt, options: SamplingOptions | None = None, **named: Any
    ) -> TextStream:
        """The pieces of what `generate` returns, as they are written."""
        return stream(self.engine, self.tokenizer, prompt, sampling_options(options, named))

    def generate_batch(
        self, prompts: Sequence[Prompt], options: SamplingOptions | None = None, **named: Any
    ) -> list[Generation]:
        """One text per prompt, the same as from `generate`, computed together."""
        chosen = sampling_options(options, named)
        return generate_batch(self.engine, self.tokenizer, prompts, chosen)

    def chat(
        self, messages: Sequence[Message], options: SamplingOptions | None = None, **named: Any
    ) -> TextStream:
        """Answer a conversation of `{"role": ..., "content": ...}` messages, piece by piece.

        A model without a chat template reads the conversation as lines `User: ...` and its answer
        ends where the next such line would begin.
        """
        chosen = sampling_options(options, named)
        prompt: Prompt
        if self.tokenizer.chat_template is None:
            prompt = plain_chat(messages)
            chosen = msgspec.structs.replace(chosen, stop=(*chosen.stop, "\nUser:", "\nSystem:"))
        else:
            prompt = self.tokenizer.apply_chat_template(messages)
        return stream(self.engine, self.tokenizer, prompt, chosen, continues=False)

    def switch(self, address: str | Subnet, *, entries: Entries = "keep") -> Switch:
        """Go on as another subnet, in the middle of a stream too; see `Engine.switch`.

        An address or the name of a saved cut is looked up in the artifact; `UsageError` where it
        names none, and where this engine was made without an artifact.
        """
        if isinstance(address, Subnet):
            return self.engine.switch(address, entries=entries)
        if self._resolve is None:
            raise UsageError("This engine knows no artifact's addresses; give it a subnet.")
        return self.engine.switch(self._resolve(address), entries=entries)

    def close(self) -> None:
        """Release the engine's threads and scratch; the artifact stays open."""
        self.engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Pliant:
    """An opened artifact; its engines all read the same mapped bytes.

    `with pliant.open("X.pliant") as model:` closes the engines it gave out.
    """

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        self._tokenizer: Tokenizer | None = None
        self._engines: list[TextEngine] = []

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer stored in the artifact."""
        if self._tokenizer is None:
            self._tokenizer = Tokenizer.load(self.artifact.path, self.artifact.manifest.files)
        return self._tokenizer

    def subnet(self, address: str = "") -> Subnet:
        """The subnet at an address such as `d8-w0.75-b3`, or the saved cut of that name."""
        return self.artifact.subnet(address)

    def engine(
        self,
        address: str | Subnet = "",
        *,
        threads: int | None = None,
        activations: Activations = "int8",
        cache_type: CacheType | None = None,
        cache_window: int | None = None,
        preload: Preload = "ahead",
        head_screen: int = 0,
    ) -> TextEngine:
        """An engine that runs one subnet: an address, a saved cut's name, or the value itself.

        The empty address is the full model. `threads` are all cores unless given; `activations`
        is the arithmetic of the matrix products, `cache_type` the type of keys and values
        (by default what the subnet's bit plan says), `cache_window`, `preload` and `head_screen`
        are options of `Engine`.
        Raises `UsageError` for an address that names no subnet of this artifact.
        """
        subnet = address if isinstance(address, Subnet) else self.subnet(address)
        engine = Engine(
            self.artifact,
            subnet,
            threads=threads,
            activations=activations,
            cache_type=cache_type,
            cache_window=cache_window,
            preload=preload,
            head_screen=head_screen,
        )
        self._engines.append(TextEngine(engine, self.tokenizer, self.subnet))
        return self._engines[-1]

    def close(self) -> None:
        """Close every engine that was opened here."""
        while self._engines:
            self._engines.pop().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def open_artifact(path: str | Path) -> Pliant:
    """Open the artifact directory `path` for reading; `pliant.open` is this function.

    Raises `ArtifactError` where it is missing, damaged or not an artifact.
    """
    return Pliant(Artifact.open(Path(path)))


def sampling_options(options: SamplingOptions | None, named: dict[str, Any]) -> SamplingOptions:
    """`options` with the fields in `named` changed; `UsageError` names those that do not exist."""
    unknown = sorted(set(named) - set(SamplingOptions.__struct_fields__))
    if unknown:
        raise UsageError(
            f"{', '.join(unknown)} is no sampling option; "
            f"there are {', '.join(SamplingOptions.__struct_fields__)}."
        )
    return msgspec.structs.replace(options or SamplingOptions(), **named)
