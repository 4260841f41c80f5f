"""An open-loop load generator for any endpoint of the OpenAI API."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from pliant.errors import DataError, UnsupportedError
from pliant.load.answers import read_record
from pliant.load.arrivals import Arrival
from pliant.load.record import RequestRecord
from pliant.load.wire import check_address, exchange

#: Seconds after which a request counts as failed.
REQUEST_SECONDS = 300.0
_TEXT = "the old fox went over a hill and found seven small stones beside the quiet river"
_WORDS = _TEXT.split()


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A server to measure: its address, the model to ask for ("" lets it choose), and a key.

    `extra` is merged into every body, for options of one server only.
    """

    url: str
    model: str = ""
    key: str = ""
    chat: bool = False
    extra: dict[str, Any] = {}

    def body(self, words: int, max_tokens: int, number: int) -> dict[str, Any]:
        """The body of a request of so many words, unlike every other from its beginning on."""
        told = [f"{number}.", *(_WORDS[(number + place) % len(_WORDS)] for place in range(words))]
        text = " ".join(told[:words])
        asked: dict[str, Any] = {
            "max_tokens": max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            **({"model": self.model} if self.model else {}),
        }
        if self.chat:
            asked["messages"] = [{"role": "user", "content": text}]
        else:
            asked["prompt"] = text
        return {**asked, **self.extra}


async def run_load(
    endpoint: Endpoint,
    arrivals: Sequence[Arrival],
    done: Callable[[RequestRecord], None] = lambda record: None,
    first_number: int = 0,
) -> tuple[list[RequestRecord], int]:
    """Send each request when it is due, however many are still running; the records in order.

    Also returns the most nanoseconds that a request was sent late, which says whether this
    machine could keep up. `UsageError` for a URL that is none, `UnsupportedError` where h11 is
    missing.
    """
    check_address(endpoint.url)
    start = time.monotonic_ns() + 1_000_000
    late = 0
    tasks = []
    for number, arrival in enumerate(arrivals, first_number):
        due = start + arrival.at
        await asyncio.sleep(max(due - time.monotonic_ns(), 0) / 1e9)
        late = max(late, time.monotonic_ns() - due)
        tasks.append(asyncio.ensure_future(_ask(endpoint, arrival, number, due, done)))
    return list(await asyncio.gather(*tasks)), late


async def profile_prefill(
    endpoint: Endpoint, words: Sequence[int], repeats: int = 3
) -> list[tuple[int, int]]:
    """`(tokens, nanoseconds)` until the first token of prompts of some sizes, one at a time.

    The least time of `repeats` for each; words, where the server does not count tokens.
    `DataError` where it answers none.
    """
    found: dict[int, int] = {}
    number = 1_000_000
    for size in words:
        for _ in range(repeats):
            number += 1
            records, _ = await run_load(endpoint, [Arrival(0, size, 1)], first_number=number)
            if not records[0].times:
                raise DataError(f"A prompt of {size} words was not answered: {records[0].error}.")
            tokens, first = records[0].size, records[0].gaps[0]
            found[tokens] = min(first, found.get(tokens, first))
    return sorted(found.items())


async def _ask(
    endpoint: Endpoint,
    arrival: Arrival,
    number: int,
    due: int,
    done: Callable[[RequestRecord], None],
) -> RequestRecord:
    late = time.monotonic_ns() - due
    try:
        record = await _stream(endpoint, arrival, number, due)
    except UnsupportedError:
        raise
    except TimeoutError:
        said = f"no end within {REQUEST_SECONDS:g} s"
        record = RequestRecord(arrived=due, words=arrival.words, error=said)
    except Exception as error:
        said = f"{type(error).__name__}: {error}".rstrip(": ")
        record = RequestRecord(arrived=due, words=arrival.words, error=said)
    record = msgspec.structs.replace(record, late=late)
    done(record)
    return record


async def _stream(endpoint: Endpoint, arrival: Arrival, number: int, due: int) -> RequestRecord:
    path = "/v1/chat/completions" if endpoint.chat else "/v1/completions"
    base = endpoint.url.rstrip("/").removesuffix("/v1")
    headers = {"Authorization": f"Bearer {endpoint.key}"} if endpoint.key else {}
    body = msgspec.json.encode(endpoint.body(arrival.words, arrival.max_tokens, number))
    return read_record(await exchange(base + path, headers, body, REQUEST_SECONDS), arrival, due)
