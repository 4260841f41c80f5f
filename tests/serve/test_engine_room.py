"""The engine's thread: what goes wrong for one is not felt by another."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from pliant.errors import GenerationError, OutOfSpaceError, UsageError
from pliant.runtime import Chunk, SamplingOptions, Tokenizer
from pliant.runtime.engine import Interrupt
from pliant.serve.engine_room import EngineRoom
from pliant.serve.outbox import Failure, Job, Outbox
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
        self.runs: list[int] = []
        #: A run waits at its beginning until this is set.
        self.gate = threading.Event()
        self.gate.set()
        self.in_run = threading.Event()
        #: A token, and the place in its cache at which the engine fails on it.
        self.fails_on = -1, -1
        self.has_memory = True

    sequence_cache = PlainCaches(10)

    def new_cache(self, capacity: int) -> ToyCache:
        if not self.has_memory:
            raise OutOfSpaceError("no memory")
        return ToyCache(capacity)

    def greedy(self, chunks: Sequence[Chunk]) -> list[Any]:
        self.steps.append(len(chunks))
        if any(POISON in chunk.tokens or self._fails(chunk) for chunk in chunks):
            raise GenerationError("a poisoned token")
        return [self._next(chunk) for chunk in chunks]

    def continue_texts(
        self,
        caches: Any,
        tokens: Any,
        steps: int,
        *,
        samplers: Any,
        ends: Any,
        interrupt: Interrupt,
    ) -> Any:
        assert samplers is None
        self.runs.append(steps)
        self.in_run.set()
        assert self.gate.wait(PATIENCE)
        rows: list[Any] = []
        while not rows or not (len(rows) == steps or interrupt.is_set or ends & set(tokens)):
            chunks = [Chunk(np.array([token]), cache)
                      for token, cache in zip(tokens, caches, strict=True)]  # fmt: skip
            tokens = np.concatenate(self.greedy(chunks)).tolist()
            rows.append(tokens)
        return np.array(rows, np.int32)

    def forward_chunk(self, chunks: Sequence[Chunk]) -> list[Any]:
        return [np.eye(257, dtype=np.float32)[tokens] for tokens in self.greedy(chunks)]

    def _fails(self, chunk: Chunk) -> bool:
        token, length = self.fails_on
        return chunk.tokens[-1] == token and chunk.cache.length == length

    def _next(self, chunk: Chunk) -> Any:
        chunk.cache.tokens += chunk.tokens.tolist()
        token = 1 + (chunk.cache.tokens[-1] + chunk.cache.length) % 200
        return np.full(chunk.num_logits, token, np.int32)


class Room:
    """An engine room with a toy engine, and what its works said."""

    def __init__(self) -> None:
        self.engine = ToyEngine()
        self.told = 0
        self.room = EngineRoom(Limits(cache_bytes=20_000), told=self._count)
        self.room.open_lane("toy", self.engine)
        self.heard: dict[str, queue.Queue[Emission | Failure]] = {}

    def _count(self) -> None:
        self.told += 1

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


def writer_for(
    tokenizer: Tokenizer,
    prompt: tuple[int, ...],
    most: int = 5,
    stop: tuple[str, ...] = (),
    **changes: Any,
) -> Writer:
    options = WriterOptions(sampling=SamplingOptions(max_tokens=most, stop=stop), **changes)
    return Writer(tokenizer, prompt, options, ToyEngine.max_context)


def run_to_end(room: Room, name: str, writer: Writer, most: int) -> list[int]:
    room.submit(name, (1, 2), writer, max_tokens=most)
    result = room.result(name)
    assert isinstance(result, list)
    return result


def expected(prompt: tuple[int, ...], most: int = 5) -> list[int]:
    tokens = list(prompt)
    for _ in range(most):
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


def test_many_steps_of_one_plan(room: Room, bytes_tokenizer: Tokenizer) -> None:
    """The engine runs on by itself; the text is the same, and told in few pieces."""
    tokens = run_to_end(room, "long", writer_for(bytes_tokenizer, (1, 2), most=50), 50)
    assert tokens == expected((1, 2), 50)
    assert sum(room.engine.runs) > 20
    assert room.told < 10 < room.room.scheduler.counts.steps == 50


def test_who_comes_is_not_kept_waiting_by_a_run(room: Room, bytes_tokenizer: Tokenizer) -> None:
    gate = room.engine.gate = threading.Event()
    room.submit("long", (1, 2), writer_for(bytes_tokenizer, (1, 2), most=60), max_tokens=60)
    assert room.engine.in_run.wait(PATIENCE)
    room.submit("short", (4, 5), writer_for(bytes_tokenizer, (4, 5)))
    gate.set()
    assert room.result("short") == expected((4, 5))
    assert room.result("long") == expected((1, 2), 60)
    # The run ended behind the step within which the other came.
    assert room.engine.runs[0] > 1 and room.engine.steps.index(2) <= 4


@pytest.mark.parametrize("poisoned", [False, True])
def test_who_leaves_or_fails_within_a_run_leaves_alone(
    room: Room, bytes_tokenizer: Tokenizer, poisoned: bool
) -> None:
    gate = room.engine.gate = threading.Event()
    with room.room._changed:
        for name, prompt in (("stays", (1, 2)), ("goes", (4, 5))):
            room.submit(name, prompt, writer_for(bytes_tokenizer, prompt, most=40), max_tokens=40)
    assert room.engine.in_run.wait(PATIENCE)
    if poisoned:
        room.engine.fails_on = expected((4, 5), 9)[-1], 10
    else:
        room.room.cancel("goes")
    gate.set()
    assert room.result("stays") == expected((1, 2), 40)
    if poisoned:
        assert room.result("goes") == Failure("request", "a poisoned token")
    # What it had computed is a prefix now, and only what it had computed.
    room.submit("again", (4, 5), writer_for(bytes_tokenizer, (4, 5)), client="me")
    assert room.result("again") == expected((4, 5))
    pool = room.room.scheduler.pool
    assert pool.used_bytes == pool.stored_bytes


def test_a_stop_string_within_a_run(room: Room, bytes_tokenizer: Tokenizer) -> None:
    """What the engine computed beyond it is nobody's, and the next turn goes on from what is."""
    whole = expected((1, 2), 30)
    stop = bytes_tokenizer.decode(whole[20:22], skip_special=False)
    writer = writer_for(bytes_tokenizer, (1, 2), most=30, stop=(stop,))
    tokens = run_to_end(room, "one", writer, 30)
    assert tokens == whole[: len(tokens)] and len(tokens) < 30
    prompt = (1, 2, *tokens, 7)
    room.submit("two", prompt, writer_for(bytes_tokenizer, prompt))
    assert room.result("two") == expected(prompt)


def test_events_of_a_text_stay_in_order_and_its_end_is_told_at_once() -> None:
    heard: list[Any] = []
    box = Outbox(lambda: heard.append("told"))
    job = Job(None, heard.append)  # type: ignore[arg-type]
    box.tell()
    tokens = [Emission(token=n, text="") for n in range(3)]
    box.put(job, tokens[0], urgent=False)
    box.tell_if_due(1)
    assert heard == ["told"] and box.nanoseconds_left > 0
    box.put(job, tokens[1], urgent=False)
    box.put(job, Failure("server", "x"), urgent=True)
    assert box.nanoseconds_left == 0
    box.tell_if_due(1)
    assert heard == ["told", *tokens[:2], Failure("server", "x"), "told"]
    assert tokens[0].nanoseconds == tokens[1].nanoseconds > 0
    # One more step would be too late.
    box.put(job, tokens[2], urgent=False)
    box.tell_if_due(10**9)
    assert heard[-2:] == [tokens[2], "told"]
