"""`Texts`: the works of one request, from its body to a stream of what they write."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import msgspec

from pliant.errors import GenerationError
from pliant.runtime.chat import plain_chat
from pliant.runtime.generation import prompt_tokens
from pliant.runtime.text_engine import TextEngine
from pliant.serve.api.errors import ApiError, bad_request, failure_error
from pliant.serve.api.messages import tool_schema
from pliant.serve.api.requests import TextRequest
from pliant.serve.engine_room import EngineRoom
from pliant.serve.grammar import GrammarCompiler
from pliant.serve.outbox import Failure
from pliant.serve.scheduling import Work
from pliant.serve.writer import Emission, Writer

_numbers = itertools.count()


class Post:
    """Calls from another thread into an event loop, many of them by one wake-up."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._calls: deque[tuple[Callable[[Any], None], Any]] = deque()

    def open(self) -> None:
        """Deliver to the running loop from now on."""
        self._loop = asyncio.get_running_loop()

    def send(self, call: Callable[[Any], None], value: Any) -> None:
        """Let the loop make `call(value)` after the next `wake`, in the order of sending."""
        self._calls.append((call, value))

    def wake(self) -> None:
        """Deliver what was sent. Not with each call: the loop would begin at once and take the
        interpreter from the thread that still sends.
        """
        # A loop that is closed belongs to a server that has stopped: nobody listens.
        if self._calls and self._loop is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        while self._calls:
            call, value = self._calls.popleft()
            call(value)


class Usage(msgspec.Struct):
    """Tokens of a request: of its prompts, of them from kept prefixes, and written."""

    prompt_tokens: int = 0
    reused_tokens: int = 0
    written_tokens: int = 0

    def body(self) -> dict[str, Any]:
        """The `usage` object of the API."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.written_tokens,
            "total_tokens": self.prompt_tokens + self.written_tokens,
            "prompt_tokens_details": {"cached_tokens": self.reused_tokens},
        }


class Texts:
    """Every prompt of a request, `num_choices` times: choice i of prompt p has index p n + i.

    Making one renders templates, tokenizes and compiles schemas, which may take a second.
    """

    def __init__(
        self,
        request: TextRequest,
        engine: TextEngine,
        room: EngineRoom,
        grammars: GrammarCompiler,
        post: Post,
        *,
        cut: str,
        client: str,
        salt: str,
    ) -> None:
        self.request, self.engine, self.usage = request, engine, Usage()
        self._room, self._grammars, self._post = room, grammars, post
        self._cut, self._client, self._salt = cut, client, salt
        self.started = time.monotonic_ns()
        self._names: list[str] = []
        self._events: deque[tuple[int, Emission | Failure]] = deque()
        self._coming: asyncio.Future[None] | None = None
        self.prompts = [self._prompt(text) for text in self._texts()]
        self.usage.prompt_tokens = sum(map(len, self.prompts))
        n = request.num_choices
        self._writers = [
            self._writer(prompt, choice) for prompt in self.prompts for choice in range(n)
        ]
        #: Nanoseconds of every token, by index.
        self.times: dict[int, list[int]] = {}

    def submit(self) -> None:
        """Hand all works to the engine room; all or none of them are accepted."""
        self._post.open()
        number = next(_numbers)
        try:
            for place, prompt in enumerate(self.prompts):
                leader = None
                for choice in range(self.request.num_choices):
                    index = place * self.request.num_choices + choice
                    name = f"{number}.{index}"
                    self._submit(name, index, prompt, leader)
                    leader = leader or name
        except Exception:
            self.cancel()
            raise

    def cancel(self) -> None:
        """Nobody wants what is not finished any more. Harmless when all is."""
        for name in self._names:
            self._room.cancel(name)

    async def events(self) -> AsyncIterator[list[tuple[int, Emission]]]:
        """What the works write, all that has come by then at a time, until all are done;
        `ApiError` where one fails."""
        left = len(self._names)
        while left:
            while not self._events:
                self._coming = asyncio.get_running_loop().create_future()
                await self._coming
            come: list[tuple[int, Emission]] = []
            failure: Failure | None = None
            while self._events and failure is None:
                index, event = self._events.popleft()
                if isinstance(event, Failure):
                    failure = event
                else:
                    self._note(index, event)
                    come.append((index, event))
                    left -= event.finish_reason is not None
            yield come
            if failure is not None:
                raise failure_error(failure)

    def _note(self, index: int, event: Emission) -> None:
        """Count a token."""
        times = self.times.setdefault(index, [])
        times.append(event.nanoseconds)
        if len(times) == 1 and index % self.request.num_choices == 0:
            self.usage.reused_tokens += event.reused_tokens
        self.usage.written_tokens += 0 if self.request.max_tokens == 0 else 1

    def _take_in(self, event: tuple[int, Emission | Failure]) -> None:
        """In the event loop: what a work has written."""
        self._events.append(event)
        if self._coming is not None and not self._coming.done():
            self._coming.set_result(None)

    def _submit(
        self,
        name: str,
        index: int,
        prompt: Sequence[int],
        leader: str | None,
    ) -> None:
        writer = self._writers[index]
        timeout = self.request.timeout_seconds
        work = Work(
            name=name,
            client=self._client,
            lane=self._cut,
            prompt=tuple(prompt),
            max_tokens=writer.options.sampling.max_tokens,
            salt=self._salt,
            prompt_logits=self.request.options.prompt_logprobs,
            deadline=None if timeout is None else self.started + int(timeout * 1e9),
            leader=leader,
        )

        def sink(event: Emission | Failure) -> None:
            self._post.send(self._take_in, (index, event))

        self._room.submit(work, writer, sink)
        self._names.append(name)

    def _writer(self, prompt: Sequence[int], choice: int) -> Writer:
        request, options = self.request, self.request.options
        room = self._room.scheduler.max_tokens(self._cut) - len(prompt) + 1
        most = room if request.max_tokens is None else max(request.max_tokens, 1)
        sampling = msgspec.structs.replace(
            options.sampling,
            # Choices differ by their seeds, and equal those of a request with that seed.
            seed=(options.sampling.seed + choice) % 2**64,
            max_tokens=most,
            stop=(*options.sampling.stop, *self._template_stops()),
        )
        schema = self._schema()
        return Writer(
            self.engine.tokenizer,
            prompt,
            msgspec.structs.replace(options, sampling=sampling),
            self.engine.engine.max_context,
            self._grammars.compile(schema) if schema is not None else None,
        )

    def _schema(self) -> Mapping[str, Any] | None:
        request = self.request
        if request.forced_tool is not None:
            return tool_schema(request.tools, request.forced_tool)
        return request.schema

    def _template_stops(self) -> tuple[str, ...]:
        plain = self.request.kind == "chat" and self.engine.tokenizer.chat_template is None
        return ("\nUser:", "\nSystem:") if plain else ()

    def _texts(self) -> Sequence[str | Sequence[int]]:
        request, tokenizer = self.request, self.engine.tokenizer
        if request.kind == "completion":
            return request.prompts
        if tokenizer.chat_template is None:
            return [plain_chat(request.messages)]
        tools = request.tools or None
        ids = tokenizer.apply_chat_template(
            request.messages, tools=tools, variables=request.template_variables
        )
        return [ids]

    def _prompt(self, text: str | Sequence[int]) -> list[int]:
        """Checked token ids, with room for what is to be written."""
        engine, request = self.engine.engine, self.request
        context = self._room.scheduler.max_tokens(self._cut)
        tokens = self.engine.tokenizer.encode(text) if isinstance(text, str) else list(text)
        wanted = max(request.max_tokens or 1, 1)
        by_memory = " on this server (--cache-memory)" if context < engine.max_context else ""
        # The token written last needs no place in the context.
        if len(tokens) + wanted - 1 > context:
            raise bad_request(
                # Client libraries know this error by its first words.
                f"This model's maximum context length is {context} tokens{by_memory}. The request "
                f"has {len(tokens)} of prompt and asks for {wanted} more; shorten either.",
                code="context_length_exceeded",
                param="messages" if request.kind == "chat" else "prompt",
            )
        outside = [token for token in request.options.logit_bias if token >= engine.vocab_size]
        if outside:
            raise bad_request(
                f"logit_bias names token {outside[0]}; this model has {engine.vocab_size}.",
                param="logit_bias",
            )
        try:
            return prompt_tokens(engine, self.engine.tokenizer, tokens)
        except GenerationError as error:
            raise ApiError(400, str(error), param="prompt") from error
