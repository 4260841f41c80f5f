"""Streams whose clients do not read or go away end, and say so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from pliant.errors import GenerationError
from pliant.serve.event_stream import EventStream
from pliant.serve.safety import GuardLimits


async def endless() -> AsyncIterator[list[bytes]]:
    while True:
        yield [b'{"token":1}']


async def broken() -> AsyncIterator[list[bytes]]:
    raise GenerationError("It cannot be.")
    yield [b"{}"]


async def never() -> dict[str, Any]:
    await asyncio.Event().wait()
    return {}


async def gone() -> dict[str, Any]:
    return {"type": "http.disconnect"}


def run(events: AsyncIterator[list[bytes]], receive: Any, send: Any) -> list[bool]:
    """What `closed` was told."""
    told: list[bool] = []

    async def closed(client_gone: bool) -> None:
        told.append(client_gone)

    async def answer() -> None:
        limits = GuardLimits(send_seconds=0.05)
        stream = EventStream(events, {}, closed, keep_alive=0.02)
        await stream({"pliant.limits": limits, "pliant.send": send}, receive, send)

    asyncio.run(asyncio.wait_for(answer(), 30))
    return told


def test_a_client_that_does_not_read_is_given_up() -> None:
    async def stuck(message: Any) -> None:
        await never()

    assert run(endless(), never, stuck) == [True]


def test_a_client_that_goes_away_is_noticed_before_the_first_event() -> None:
    async def silent() -> AsyncIterator[list[bytes]]:
        await never()
        yield [b""]

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    assert run(silent(), gone, send) == [True]
    assert sent == []


@pytest.mark.parametrize("after", [0, 3])
def test_a_failure_has_a_status_before_the_first_event_and_an_event_behind_it(after: int) -> None:
    async def events() -> AsyncIterator[list[bytes]]:
        for place in range(after):
            yield [b'{"place":%d}' % place]
        async for event in broken():
            yield event

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    assert run(events(), never, send) == [False]
    assert sent[0]["status"] == (200 if after else 400)
    assert b"It cannot be." in sent[-1]["body"] and b"DONE" not in sent[-1]["body"]
    assert not sent[-1].get("more_body")


def test_events_that_come_together_go_out_in_one_piece() -> None:
    async def events() -> AsyncIterator[list[bytes]]:
        yield [b"1", b"2"]
        yield []
        yield [b"3"]

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message.get("body"))

    assert run(events(), never, send) == [False]
    assert sent == [None, b"data: 1\n\ndata: 2\n\n", b"data: 3\n\n", b"data: [DONE]\n\n"]
