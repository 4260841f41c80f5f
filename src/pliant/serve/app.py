"""`Service`: one request at a time from body to answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from pliant.runtime.text_engine import TextEngine
from pliant.serve.api.choices import Answer, Choice
from pliant.serve.api.errors import ApiError, api_error
from pliant.serve.api.requests import TextRequest
from pliant.serve.engine_room import EngineRoom
from pliant.serve.event_stream import EventStream
from pliant.serve.grammar import GrammarCompiler
from pliant.serve.metrics import Metrics
from pliant.serve.subnets import Subnets
from pliant.serve.texts import Post, Texts
from pliant.serve.writer import Emission

if TYPE_CHECKING:
    from starlette.requests import Request

#: The chat page lies beside this file.
PAGE = Path(__file__).with_name("page") / "index.html"
#: What the page may do: its own style and script, and talk to this server. Nothing from elsewhere.
PAGE_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


Prepared = TypeVar("Prepared")


class Service:
    """Everything that handlers share."""

    def __init__(
        self,
        subnets: Subnets,
        room: EngineRoom,
        metrics: Metrics,
        post: Post,
        *,
        share_prefixes: bool = False,
        log: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        self.subnets, self.room, self.metrics, self.post = subnets, room, metrics, post
        self.share_prefixes, self.log = share_prefixes, log or (lambda record: None)
        spec = subnets.model.artifact.spec
        self.grammars = GrammarCompiler(subnets.model.tokenizer, spec.vocab_size)
        self._preparing = ThreadPoolExecutor(1, "pliant-prepare")
        self.started = int(time.time())
        self.draining = False

    async def prepare(self, work: Callable[[], Prepared]) -> Prepared:
        """The result of `work`, which templates, tokenizers and grammars may make slow.

        One thread does it for all, off the event loop; so none of them needs a lock.
        """
        return await asyncio.get_running_loop().run_in_executor(self._preparing, work)

    def close(self) -> None:
        """End what runs and give everything back."""
        self.draining = True
        self.room.close()
        self.subnets.close()
        self._preparing.shutdown()

    def full_lines(self) -> int:
        """Requests that wait for each place: 0 while there is a place free."""
        scheduler = self.room.scheduler
        return -(-scheduler.num_waiting // scheduler.limits.max_sequences)

    async def answer(self, http: Request, read: Callable[[bytes], TextRequest]) -> Any:
        """The response to a body of either kind."""
        if self.draining:
            raise ApiError(503, "The server is closing; ask another one.", code="closing",
                           headers={"Retry-After": "5"})  # fmt: skip
        request = read(await http.body())
        cuts = self.subnets.candidates(
            request.model,
            self.full_lines(),
            smallest=request.smallest_cut,
            prefer=request.prefer,
        )
        stack = AsyncExitStack()
        try:
            cut, engine = await self.subnets.open_any(cuts, stack)
            answering = await self.prepare(lambda: _Answering(self, request, engine, cut, http))
            answering.texts.submit()
        except BaseException:
            await stack.aclose()
            raise
        name = self.subnets.model_name(cut)
        self.metrics.request(name, request.num_choices, request.max_tokens)
        if request.stream:
            return answering.events(stack)
        async with stack:
            return await answering.whole(http)


class _Answering:
    """One request that was accepted."""

    def __init__(
        self, service: Service, request: TextRequest, engine: TextEngine, cut: str, http: Request
    ) -> None:
        self._service, self._request, self._engine = service, request, engine
        self._client: str = http.scope["pliant.client"]
        self._id: str = http.scope["pliant.request_id"]
        self._failure: ApiError | None = None
        self._begun: set[int] = set()
        model = service.subnets.model_name(cut)
        self._answer = Answer(request, model)
        self.headers = {"X-Pliant-Subnet": model, "X-Request-Id": self._id}
        self.headers |= warning_of(request.unknown)
        self.texts = Texts(
            request,
            engine,
            service.room,
            service.grammars,
            service.post,
            cut=cut,
            client=self._client,
            salt="" if service.share_prefixes else self._client,
        )
        n = request.num_choices
        self._choices = [
            Choice(request, engine.tokenizer, index, self.texts.prompts[index // n])
            for index in range(len(self.texts.prompts) * n)
        ]

    def events(self, stack: AsyncExitStack) -> EventStream:
        """The response of a stream; `stack` is closed with it."""

        async def closed(gone: bool) -> None:
            self.close(gone)
            await stack.aclose()

        return EventStream(self._stream(), self.headers, closed)

    async def _stream(self) -> AsyncIterator[list[bytes]]:
        """The objects of a stream as JSON, in order, all that are there at a time."""
        try:
            async for objects in self._objects():
                yield objects
        except Exception as error:
            self._failure = api_error(error)
            raise self._failure from error

    async def _objects(self) -> AsyncIterator[list[bytes]]:
        async for come in self.texts.events():
            objects: list[bytes] = []
            for index, event in come:
                choice = self._choices[index]
                first = choice.first_delta() if self._begins(index, event) else None
                entries = ([first] if first else []) + choice.push(event)
                objects += [self._answer.chunk([entry]) for entry in entries]
                self._note_end(index, event.finish_reason)
            yield objects
        if self._request.include_usage:
            yield [self._answer.last(self.texts.usage.body())]

    async def whole(self, http: Request) -> Any:
        """The answer in one object, unless the client goes first."""
        from starlette.responses import Response

        collecting = asyncio.ensure_future(self._collect())
        leaving = asyncio.ensure_future(_gone(http))
        try:
            await asyncio.wait({collecting, leaving}, return_when=asyncio.FIRST_COMPLETED)
            gone = not collecting.done()
            if gone:
                return Response(status_code=499)
            collecting.result()
        finally:
            for task in (collecting, leaving):
                task.cancel()
            await asyncio.gather(collecting, leaving, return_exceptions=True)
            if collecting.cancelled() or collecting.exception() is None:
                self.close(collecting.cancelled())
            else:
                # Whoever turns the error into an answer says so in the log.
                self.texts.cancel()
        choices = [choice.whole() for choice in self._choices]
        body = msgspec.json.encode(self._answer.whole(choices, self.texts.usage.body()))
        return Response(body, media_type="application/json", headers=self.headers)

    def close(self, gone: bool) -> None:
        """The answer is at an end; what still runs is cancelled."""
        self.texts.cancel()
        failure, ended = self._failure, {}
        if failure is not None:
            self._service.metrics.refused(failure.status)
            ended = {"status": failure.status, "message": str(failure)}
        elif gone:
            self._service.metrics.cancelled()
        self._service.log(
            {
                "event": "failed" if failure else "gone" if gone else "answered",
                "request": self._id,
                "client": self._client,
                "model": self._answer.model,
                "seconds": round((time.monotonic_ns() - self.texts.started) / 1e9, 4),
                **msgspec.structs.asdict(self.texts.usage),
                **ended,
            }
        )

    async def _collect(self) -> None:
        async for come in self.texts.events():
            for index, event in come:
                self._choices[index].push(event)
                self._begins(index, event)
                self._note_end(index, event.finish_reason)

    def _begins(self, index: int, event: Emission) -> bool:
        """Whether this is the first that comes of a text, which is then noted."""
        if index in self._begun:
            return False
        self._begun.add(index)
        self._service.metrics.first_token(self.texts.started, event.admitted, event.nanoseconds)
        return True

    def _note_end(self, index: int, reason: str | None) -> None:
        if reason is not None:
            prompt = self.texts.prompts[index // self._request.num_choices]
            times = self.texts.times[index]
            # A prompt that was only scored has a token which nobody is shown.
            written = 0 if self._request.max_tokens == 0 else len(times)
            self._service.metrics.text(self.texts.started, times, len(prompt), written, reason)


async def _gone(http: Request) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass


def warning_of(unknown: tuple[str, ...]) -> dict[str, str]:
    """The header that names fields which were ignored, if any were."""
    if not unknown:
        return {}
    text = ", ".join(unknown)[:200]
    said = (c if c.isascii() and c.isprintable() and c not in '"\\' else "?" for c in text)
    return {"Warning": '299 pliant "ignored: ' + "".join(said) + '"'}
