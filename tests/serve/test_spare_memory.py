"""Freed memory goes back to the system while a server runs."""

from __future__ import annotations

import asyncio
import ctypes
import sys

import psutil
import pytest

from pliant.serve import spare_memory

#: Small enough for glibc to keep it in its heap.
_PIECE = 4000


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc keeps and gives back like this")
def test_what_was_freed_goes_back() -> None:
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "malloc_trim"):
        pytest.skip("this C library is not glibc")
    libc.malloc.restype = ctypes.c_void_p
    pieces = [libc.malloc(_PIECE) for _ in range(20_000)]
    for piece in pieces:
        ctypes.memset(piece, 1, _PIECE)
    # One in a hundred stays, so that the end of the heap does.
    for place, piece in enumerate(pieces):
        if place % 100:
            libc.free(ctypes.c_void_p(piece))
    held = psutil.Process().memory_info().rss
    assert spare_memory.give_back()
    given = held - psutil.Process().memory_info().rss
    for piece in pieces[::100]:
        libc.free(ctypes.c_void_p(piece))
    assert given > 20_000 * _PIECE // 2


def test_without_glibc_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert not spare_memory.give_back()


def test_it_goes_on_until_it_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    times: list[None] = []
    monkeypatch.setattr(spare_memory, "give_back", lambda: times.append(None))

    async def some_time() -> None:
        task = asyncio.create_task(spare_memory.give_back_for_ever(0.001))
        while len(times) < 3:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(asyncio.wait_for(some_time(), 30))
