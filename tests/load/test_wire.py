"""Requests whose answers come in any pieces, against servers that are bytes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pliant.errors import DataError, UsageError
from pliant.load import Arrival
from pliant.load.answers import read_record
from pliant.load.wire import Reply, exchange

EVENTS = (
    b'data: {"choices": [{"text": "a"}]}\n\n'
    b": a comment\n\n"
    b'data: {"choices": [{"delta": {"content": "bc"}}]}\r\n\r\n'
    b'data: {"choices": [], "usage": {"completion_tokens": 3, "prompt_tokens": 7}}\n\n'
    b"data: [DONE]\n\n"
)


def ask(answer: Sequence[bytes], seconds: float = 10) -> tuple[Reply, bytes]:
    """The reply to a request that a server answers with these pieces, and what it was asked."""
    asked = b""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        head = await reader.readuntil(b"\r\n\r\n")
        asked = head + await reader.readexactly(2)
        for piece in answer:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        writer.close()

    async def both() -> Reply:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server:
            url = f"http://127.0.0.1:{port}/v1/completions"
            return await exchange(url, {"Authorization": "Bearer k"}, b"{}", seconds)

    return asyncio.run(both()), asked


def chunked(body: bytes, sizes: Sequence[int]) -> list[bytes]:
    """A body in chunks of these sizes, and what is left in one more."""
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    pieces = [head]
    for size in [*sizes, len(body)]:
        part, body = body[:size], body[size:]
        if part:
            pieces.append(b"%x\r\n%s\r\n" % (len(part), part))
    return [*pieces, b"0\r\n\r\n"]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 60), max_size=12))
def test_a_stream_is_read_however_it_is_divided(sizes: list[int]) -> None:
    reply, asked = ask(chunked(EVENTS, sizes))
    assert asked.startswith(b"POST /v1/completions HTTP/1.1\r\n")
    assert b"connection: close" in asked.lower() and b"Bearer k" in asked
    assert b"".join(piece for _, piece in reply.pieces) == EVENTS
    record = read_record(reply, Arrival(0, 5, 3), due=0)
    assert (record.prompt_tokens, len(record.times), record.error) == (7, 3, None)
    assert list(record.times) == sorted(record.times)


def test_a_line_has_the_time_of_its_end() -> None:
    reply = Reply(200, ((10, b"data: 1\nda"), (20, b"ta: 2"), (30, b"\n\nrest")))
    assert list(reply.lines()) == [
        (10, b"data: 1"), (30, b"data: 2"), (30, b""), (30, b"rest"),
    ]  # fmt: skip


def test_an_answer_that_is_an_error() -> None:
    reply, _ = ask([b"HTTP/1.1 503 No\r\nContent-Length: 2\r\n\r\n{}"])
    assert read_record(reply, Arrival(0, 5, 3), due=0).error == "status 503: {}"


@pytest.mark.parametrize(
    "answer",
    [[], [b"hello\r\n\r\n"], chunked(EVENTS, [9])[:2], [b"HTTP/1.1 200 OK\r\nContent-Le"]],
    ids=["nothing", "no-http", "no-end", "no-headers"],
)
def test_answers_that_break_off(answer: list[bytes]) -> None:
    with pytest.raises(DataError):
        ask(answer)


def test_addresses_and_times() -> None:
    for url in ("ftp://host/x", "host:80", "http://"):
        with pytest.raises(UsageError, match="HOST"):
            asyncio.run(exchange(url, {}, b"{}", 1))
    with pytest.raises(ConnectionRefusedError):
        asyncio.run(exchange("http://127.0.0.1:9/", {}, b"{}", 5))

    async def silent() -> None:
        hold = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await hold.wait()
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        try:
            await exchange(f"http://127.0.0.1:{port}/", {}, b"{}", 0.05)
        finally:
            hold.set()
            server.close()

    with pytest.raises(TimeoutError):
        asyncio.run(silent())
