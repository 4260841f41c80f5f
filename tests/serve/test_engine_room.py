"""The engine's thread: what goes wrong for one is not felt by another."""

from __future__ import annotations

import queue
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from pliant.errors import GenerationError, OutOfSpaceError, UsageError
from pliant.runtime import Chunk, SamplingOptions, Tokenizer
from pliant.serve.engine_room import EngineRoom, Failure
from pliant.serve.scheduling import Limits, Work
from pliant.serve.scheduling.pool import PlainCaches
from pliant.serve.writer import Emission, Writer, WriterOptions

#: A token at which the engine of these tests fails.
POISON = 250
PATIENCE = 30


class ToyCache:
    """Tokens in place of keys and values."""

    def __init__(self, capacity: int, tokens: Sequence[int] = ()) -> None:
        self.capacity, self.tokens = capacity, list(tokens)
        self.num_bytes = 10 * capacity

    @property
    def length(self) -> int:
        return len(self.tokens)

    def copy(self, length: int, capacity: int) -> ToyCache:
        return ToyCache(capacity, self.tokens[:length])

    def truncate(self, length: int) -> None:
        del self.tokens[length:]


class ToyEngine:
    """The next token is the last one plus the number of tokens; some things fail."""

    max_context = 64

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.has_memory = True

    sequence_cache = PlainCaches(10)

    def new_cache(self, capacity: int) -> ToyCache:
        if not self.has_memory:
            raise OutOfSpaceError("no memory")
        return ToyCache(capacity)

    def greedy(self, chunks: Sequence[Chunk]) -> list[Any]:
        self.steps.append(len(chunks))
        if any(POISON in chunk.tokens for chunk in chunks):
            raise GenerationError("a poisoned token")
        return [self._next(chunk) for chunk in chunks]

    def forward_chunk(self, chunks: Sequence[Chunk]) -> list[Any]:
        return [np.eye(257, dtype=np.float32)[tokens] for tokens in self.greedy(chunks)]

    def _next(self, chunk: Chunk) -> Any:
        chunk.cache.tokens += chunk.tokens.tolist()
        token = 1 + (chunk.cache.tokens[-1] + chunk.cache.length) % 200
        return np.full(chunk.num_logits, token, np.int32)


class Room:
    """An engine room with a toy engine, and what its works said."""

    def __init__(self) -> None:
        self.engine = ToyEngine()
        self.room = EngineRoom(Limits(cache_bytes=20_000))
        self.room.open_lane("toy", self.engine)
        self.heard: dict[str, queue.Queue[Emission | Failure]] = {}

    def submit(self, name: str, prompt: tuple[int, ...], writer: Writer, **changes: Any) -> None:
        self.heard[name] = queue.Queue()
        fields = {"client": "me", "lane": "toy", "max_tokens": 5, **changes}
        self.room.submit(Work(name=name, prompt=prompt, **fields), writer, self.heard[name].put)

    def result(self, name: str) -> list[int] | Failure:
        tokens: list[int] = []
        while True:
            event = self.heard[name].get(timeout=PATIENCE)
            if isinstance(event, Failure):
                return event
            tokens.append(event.token)
            if event.finish_reason:
                return tokens


def writer_for(tokenizer: Tokenizer, prompt: tuple[int, ...], **changes: Any) -> Writer:
    options = WriterOptions(sampling=SamplingOptions(max_tokens=5), **changes)
    return Writer(tokenizer, prompt, options, ToyEngine.max_context)


def expected(prompt: tuple[int, ...]) -> list[int]:
    tokens = list(prompt)
    for _ in range(5):
        tokens.append(1 + (tokens[-1] + len(tokens)) % 200)
    return tokens[len(prompt) :]


@pytest.fixture
def room() -> Iterator[Room]:
    made = Room()
    yield made
    made.room.close()
    assert not made.room.is_alive


def test_a_poisoned_request_ends_alone(room: Room, bytes_tokenizer: Tokenizer) -> None:
    prompts = {f"{place}": (place, 7, 9) for place in range(1, 6)} | {"bad": (3, POISON)}
    with room.room._changed:  # so that all are in the first step
        for name, prompt in prompts.items():
            room.submit(name, prompt, writer_for(bytes_tokenizer, prompt))
    assert room.result("bad") == Failure("request", "a poisoned token")
    for name in prompts.keys() - {"bad"}:
        assert room.result(name) == expected(prompts[name])
    assert room.engine.steps[:7] == [6, 1, 1, 1, 1, 1, 1]


def test_a_writer_that_breaks_ends_alone(room: Room, bytes_tokenizer: Tokenizer) -> None:
    broken = writer_for(bytes_tokenizer, (1, 2))
    broken.accept_token = broken.accept = None  # type: ignore[method-assign, assignment]
    room.submit("broken", (1, 2), broken)
    room.submit("well", (4, 5), writer_for(bytes_tokenizer, (4, 5)))
    failure = room.result("broken")
    assert isinstance(failure, Failure) and failure.kind == "server"
    assert room.result("well") == expected((4, 5))


def test_no_memory_for_a_cache_ends_that_request(room: Room, bytes_tokenizer: Tokenizer) -> None:
    room.engine.has_memory = False
    room.submit("one", (1, 2), writer_for(bytes_tokenizer, (1, 2)))
    failure = room.result("one")
    assert isinstance(failure, Failure) and "memory" in failure.message
    room.engine.has_memory = True
    room.submit("two", (1, 2), writer_for(bytes_tokenizer, (1, 2)))
    assert room.result("two") == expected((1, 2))


def test_greedy_and_drawn_texts_share_steps(room: Room, bytes_tokenizer: Tokenizer) -> None:
    biased = writer_for(bytes_tokenizer, (1, 2), logit_bias={5: 0.5})
    with room.room._changed:
        room.submit("plain", (4, 5), writer_for(bytes_tokenizer, (4, 5)))
        room.submit("biased", (1, 2), biased)
    assert room.result("plain") == expected((4, 5))
    assert room.result("biased") == expected((1, 2))


def test_a_deadline_and_a_cancelled_request(room: Room, bytes_tokenizer: Tokenizer) -> None:
    room.submit("late", (1, 2), writer_for(bytes_tokenizer, (1, 2)), deadline=0)
    failure = room.result("late")
    assert isinstance(failure, Failure) and failure.kind == "deadline"
    room.submit("gone", (1, 2), writer_for(bytes_tokenizer, (1, 2)))
    room.room.cancel("gone")
    room.submit("next", (1, 2), writer_for(bytes_tokenizer, (1, 2)))
    assert room.result("next") == expected((1, 2))


def test_what_still_runs_when_the_room_closes_hears_of_it(bytes_tokenizer: Tokenizer) -> None:
    made = Room()
    with made.room._changed:
        made.submit("cut off", (1, 2), writer_for(bytes_tokenizer, (1, 2)))
        made.room._closing = True
    made.room.close()
    failure = made.result("cut off")
    assert isinstance(failure, Failure) and "stopped" in failure.message
    with pytest.raises(UsageError, match="closing"):
        made.submit("too late", (1, 2), writer_for(bytes_tokenizer, (1, 2)))
