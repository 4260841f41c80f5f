"""Requests are timed from when they were due, whatever keeps the generator or the server."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from pliant.errors import UsageError
from pliant.load import Arrival, Endpoint, fit_prefill_curve, generator, profile_prefill, run_load
from pliant.load.wire import Reply

MS = 1_000_000
EVENTS = b'data: {"choices": [{"text": "a"}]}\n\ndata: [DONE]\n\n'


def test_a_stall_of_the_generator_hides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop is held for 80 ms while three more requests are due: they count from then."""

    async def answered(url: str, headers: Any, body: bytes, seconds: float) -> Reply:
        time.sleep(0.08 if b'"0.' in body else 0)
        return Reply(200, ((time.monotonic_ns(), EVENTS),))

    monkeypatch.setattr(generator, "exchange", answered)
    arrivals = [Arrival(place * 20 * MS, 3, 1) for place in range(4)]
    records, late = asyncio.run(run_load(Endpoint(url="http://x"), arrivals))
    start = records[0].arrived
    assert [record.arrived - start for record in records] == [0, 20 * MS, 40 * MS, 60 * MS]
    # The first holds the loop until 80 ms, so the second is sent 60 ms late, and so on.
    for record, least in zip(records[1:], (60, 40, 20), strict=True):
        assert record.late >= least * MS
        assert record.gaps[0] >= least * MS
    assert max(record.late for record in records) >= late >= 60 * MS


def test_profiles_of_servers_that_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes are words then, and the curve is no constant."""

    async def answered(url: str, headers: Any, body: bytes, seconds: float) -> Reply:
        words = body.count(b" ") + 1
        await asyncio.sleep(words / 1000)
        return Reply(200, ((time.monotonic_ns(), EVENTS),))

    monkeypatch.setattr(generator, "exchange", answered)
    points = asyncio.run(profile_prefill(Endpoint(url="http://x"), [4, 64], repeats=1))
    assert [size for size, _ in points] == [4, 64]
    curve = fit_prefill_curve(*map(list, zip(*points, strict=True)))
    assert curve(64) > curve(4)


def test_a_time_out_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    async def silent(url: str, headers: Any, body: bytes, seconds: float) -> Reply:
        raise TimeoutError

    monkeypatch.setattr(generator, "exchange", silent)
    records, _ = asyncio.run(run_load(Endpoint(url="http://x"), [Arrival(0, 3, 1)]))
    assert records[0].error == "no end within 300 s"


def test_an_address_that_is_none_is_no_failed_request() -> None:
    with pytest.raises(UsageError, match="HOST:PORT"):
        asyncio.run(run_load(Endpoint(url="localhost:8321"), [Arrival(0, 3, 1)]))
