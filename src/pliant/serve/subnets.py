"""`Subnets`: the subnets of one artifact as models, opened when they are asked for."""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import msgspec

from pliant.errors import DoesNotFitError, OutOfSpaceError, PliantError, UsageError
from pliant.runtime.text_engine import Pliant, TextEngine
from pliant.serve.engine_room import EngineRoom
from pliant.subnet import Subnet

#: How clients and options name the whole artifact.
FULL = "full"


class UnknownModelError(PliantError):
    """A model name that names nothing here; the message lists what does."""


class Subnets:
    """Names of models, and the open engines behind them, all over the same mapped bytes.

    `NAME` is the default cut, `NAME@CUT` any cut by its address or saved name, `NAME@full` the
    whole artifact, `NAME@auto` the one of `auto_cuts` that the load allows. At most `max_open`
    engines are open; one that nobody uses gives way, and its caches with it. Caches are held as
    each cut says, or all in `cache_bits` behind a `cache_window`.
    """

    def __init__(
        self,
        model: Pliant,
        name: str,
        room: EngineRoom,
        *,
        default_cut: str = "",
        auto_cuts: tuple[str, ...] = (),
        max_open: int = 4,
        cache_bits: int | None = None,
        cache_window: int | None = None,
        **engine_options: Any,
    ) -> None:
        self.model, self.name, self.default_cut = model, name, default_cut
        self._room, self._max_open, self._options = room, max_open, engine_options
        self._cache = (cache_bits, cache_window)
        cuts = auto_cuts or (default_cut, *model.artifact.subnet_names())
        cuts = tuple(dict.fromkeys("" if cut == FULL else cut for cut in cuts))
        self.auto_cuts = tuple(sorted(cuts, key=self._weight, reverse=True))
        self._open: OrderedDict[str, TextEngine] = OrderedDict()
        self._pins: dict[str, int] = {}
        self._lock = asyncio.Lock()
        self._guard = threading.Lock()

    def model_name(self, cut: str) -> str:
        """The name that a client gives for a cut; everything is `@full` where it is no default."""
        if not cut and not self.default_cut:
            return self.name
        return f"{self.name}@{cut or FULL}"

    def names(self) -> list[str]:
        """The models to list: the default, every saved cut, what is open, and `auto`."""
        saved = self.model.artifact.subnet_names()
        cuts = [self.default_cut, *saved, *self.auto_cuts, *self.open_cuts(), "auto"]
        return list(dict.fromkeys([self.name, *map(self.model_name, cuts)]))

    def open_cuts(self) -> list[str]:
        """The cuts whose engines are open."""
        with self._guard:
            return list(self._open)

    def subnet(self, cut: str) -> Subnet:
        """The subnet of a cut; `UnknownModelError` where there is none."""
        try:
            return self.model.subnet(cut).with_cache(*self._cache)
        except PliantError as error:
            # Clients are not told where files lie here.
            said = str(error).replace(str(self.model.artifact.path), self.name)
            raise UnknownModelError(f"{said} {self._listing()}") from error

    def resolve(
        self, model: str, waiting: int = 0, *, smallest: str | None = None, prefer: str = ""
    ) -> str:
        """The cut to run for the model a client asked for, "" being the whole artifact.

        `waiting` requests wait for each place; `@auto` goes one cut down for each, as far as
        `smallest`, the last that the client allows. One that prefers `latency` begins at the last,
        one that prefers `quality` goes down only where it named a smallest.
        """
        return self.candidates(model, waiting, smallest=smallest, prefer=prefer)[0]

    def candidates(
        self, model: str, waiting: int = 0, *, smallest: str | None = None, prefer: str = ""
    ) -> list[str]:
        """The cut to run, and behind it those that the client of `@auto` allows in its place."""
        name, _, cut = model.partition("@")
        if model and name != self.name:
            raise UnknownModelError(f"There is no model {model!r}. {self._listing()}")
        if cut != "auto":
            found = "" if cut == FULL else cut or self.default_cut
            self.subnet(found)
            return [found]
        rungs = list(self.auto_cuts)
        if smallest is not None:
            floor = smallest.removeprefix(f"{self.name}@")
            floor = "" if floor == FULL else floor
            least = self._weight(floor)
            rungs = [rung for rung in rungs if self._weight(rung) >= least] or [floor]
        if prefer == "quality" and smallest is None:
            rungs = rungs[:1]
        place = len(rungs) - 1 if prefer == "latency" else min(waiting, len(rungs) - 1)
        return sorted(rungs, key=lambda rung: abs(rungs.index(rung) - place))

    async def open_any(self, cuts: Sequence[str], stack: AsyncExitStack) -> tuple[str, TextEngine]:
        """The first of some cuts that is open or can be opened, and its engine, kept by `stack`.

        `DoesNotFitError` or `OutOfSpaceError`, that of the first, where all are too many.
        """
        refused: PliantError | None = None
        for cut in cuts:
            try:
                return cut, await stack.enter_async_context(self.engine(cut))
            except (DoesNotFitError, OutOfSpaceError) as error:
                refused = refused or error
        assert refused is not None, "there is always a cut to try"
        raise refused

    @asynccontextmanager
    async def engine(self, cut: str) -> AsyncIterator[TextEngine]:
        """The engine of a cut, kept open until the block ends; its lane is named by the cut."""
        async with self._lock:
            if cut not in self._open:
                await asyncio.to_thread(self._open_engine, cut)
            self._open.move_to_end(cut)
            self._pins[cut] = self._pins.get(cut, 0) + 1
        try:
            yield self._open[cut]
        finally:
            self._pins[cut] -= 1

    def describe(self, cut: str) -> dict[str, Any]:
        """What `/v1/subnets` says of a cut."""
        subnet = self.subnet(cut)
        return {
            "id": self.model_name(cut),
            "cut": cut,
            "open": cut in self._open,
            "blocks": len(subnet.shape.blocks),
            "parameters": subnet.num_parameters,
            "weight_bytes": subnet.weight_bytes,
            "effective_bits": subnet.effective_bits,
            "cache": str(subnet.bits.cache),
            "cache_bytes_per_token": round(subnet.cache_bytes_per_token),
            "receipts": [
                msgspec.to_builtins(receipt)
                for receipt in self.model.artifact.manifest.receipts
                if receipt.address == cut
            ],
        }

    def close(self) -> None:
        """Close every engine; the room must be closed before."""
        while self._open:
            self._open.popitem()[1].close()

    def _weight(self, cut: str) -> int:
        return self.subnet(cut).weight_bytes

    def _listing(self) -> str:
        return f"There are {', '.join(self.names())}, and {self.name}@d8-w0.75-b3 and the like."

    def _open_engine(self, cut: str) -> None:
        """Open an engine, after an idle one was closed if there are too many."""
        subnet = self.subnet(cut)
        if len(self._open) >= self._max_open:
            self._close_one()
        engine = self.model.engine(subnet, **self._options)
        self._room.open_lane(cut, engine.engine)
        with self._guard:
            self._open[cut] = engine

    def _close_one(self) -> None:
        for cut in list(self._open):
            if self._pins.get(cut):
                continue
            try:
                self._room.close_lane(cut)
            except UsageError:
                # Its last text was cancelled and is still being computed.
                continue
            with self._guard:
                self._open.pop(cut).close()
            return
        raise DoesNotFitError(
            f"{len(self._open)} subnets are in use, which is the most this server keeps open "
            f"(--max-subnets): {', '.join(map(self.model_name, self._open))}. Use one of them."
        )
