"""From options to a running server: what is opened, where it listens, how it stops."""

from __future__ import annotations

import asyncio
import ipaddress
import signal
import socket
from collections.abc import Callable
from typing import Any

import msgspec
import psutil

from pliant.bits.cache import CacheFormat, CacheType, SequenceCache, bits_of
from pliant.errors import UnsupportedError, UsageError
from pliant.load import Deadlines
from pliant.measurement import format_bytes
from pliant.runtime.text_engine import Pliant
from pliant.serve.app import Service
from pliant.serve.engine_room import EngineRoom
from pliant.serve.metrics import Metrics
from pliant.serve.origins import Origins
from pliant.serve.protocol import patient_protocol
from pliant.serve.routes import make_app
from pliant.serve.safety import GuardLimits, Keys
from pliant.serve.scheduling import Limits
from pliant.serve.subnets import FULL, Subnets
from pliant.serve.texts import Post

#: Turns of the event loop, and seconds between them, in which a server that was asked to stop
#: takes in what was sent before: a connection needs a few turns from the kernel to its handler.
_LAST_TURNS, _TURN_SECONDS = 10, 0.01
#: Part of the memory that is free now which caches may take unless told otherwise.
_FREE_MEMORY_SHARE = 4

Log = Callable[[dict[str, Any]], None]


class ServeOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What `pliant serve` can be told. `UsageError` for what cannot be.

    `cache_type` and `cache_window` None take what the bit plan of a subnet says, `cache_bytes` None
    takes what `max_sequences` whole contexts need, or a quarter of the free memory if that is less.
    `drain_seconds` is how long running texts may go on after SIGTERM; `origins` are web pages, as
    https://HOST, that may use the server beside its own.
    """

    name: str
    host: str = "127.0.0.1"
    port: int = 8321
    default_cut: str = ""
    auto_cuts: tuple[str, ...] = ()
    max_subnets: int = 4
    threads: int | None = None
    cache_type: CacheType | None = None
    cache_window: int | None = None
    cache_bytes: int | None = None
    max_sequences: int = 16
    max_waiting: int = 256
    step_seconds: float = 0.05
    share_prefixes: bool = False
    drain_seconds: int = 30
    deadlines: Deadlines = Deadlines()
    origins: tuple[str, ...] = ()
    guard: GuardLimits = GuardLimits()

    def cache_format(self, planned: CacheFormat) -> CacheFormat:
        """How caches of a subnet hold keys and values whose bit plan says `planned`.

        `UsageError` for a type or window that cannot be.
        """
        return planned.but(bits_of(self.cache_type), self.cache_window)

    def check(self, keys: Keys) -> None:
        """Refuse to be reachable from elsewhere without keys."""
        if not keys and not _is_loopback(self.host):
            raise UsageError(
                f"A server on {self.host} can be reached by others and has no keys; give --keys "
                "FILE or PLIANT_API_KEYS, or listen on 127.0.0.1."
            )
        self.cache_format(CacheFormat())
        Origins(self.origins)
        if not 0 < self.step_seconds <= 60:
            raise UsageError(f"A step of {self.step_seconds:g} s makes no sense; try 50ms.")
        if "@" in self.name or not self.name:
            raise UsageError(
                f"{self.name!r} cannot name a model; leave out the @ and what follows."
            )


def require_serve() -> None:
    """`UnsupportedError` with what to install where a library is missing."""
    try:
        import prometheus_client  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UnsupportedError(
            f"Serving needs {error.name}; run pip install 'pliant[serve]'."
        ) from error


def make_service(model: Pliant, options: ServeOptions, log: Log | None = None) -> Service:
    """The service of an artifact, its engine room running; nothing listens yet.

    `UsageError` where a cut of the options is none of the artifact's.
    """
    for cut in (options.default_cut, *(cut for cut in options.auto_cuts if cut != FULL)):
        model.subnet(cut)
    metrics: Metrics | None = None
    limits = Limits(
        cache_bytes=options.cache_bytes or default_cache_bytes(model, options),
        max_sequences=options.max_sequences,
        max_waiting=options.max_waiting,
        step_nanoseconds=int(options.step_seconds * 1e9),
    )
    post = Post()
    room = EngineRoom(limits, lambda record: metrics.step(record) if metrics else None, post.wake)
    try:
        subnets = Subnets(
            model,
            options.name,
            room,
            default_cut=options.default_cut,
            auto_cuts=options.auto_cuts,
            max_open=options.max_subnets,
            threads=options.threads,
            cache_bits=bits_of(options.cache_type),
            cache_window=options.cache_window,
        )

        def snapshot() -> dict[str, Any]:
            return {**room.snapshot(), "open_subnets": len(subnets.open_cuts())}

        metrics = Metrics(options.name, snapshot, options.deadlines)
        return Service(subnets, room, metrics, post, share_prefixes=options.share_prefixes, log=log)
    except BaseException:
        room.close()
        raise


def default_cache_bytes(model: Pliant, options: ServeOptions) -> int:
    """What all places with a whole context take, or a quarter of what is free if that is less."""
    subnet = model.subnet(options.default_cut)
    caches = SequenceCache(
        format=options.cache_format(subnet.bits.cache),
        groups=sum(subnet.shape.groups),
        head_dim=subnet.spec.head_dim,
    )
    wanted = caches.num_bytes(subnet.spec.max_context) * options.max_sequences
    free = int(psutil.virtual_memory().available) // _FREE_MEMORY_SHARE
    return max(min(wanted, free), caches.num_bytes(16))


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; `UsageError` where the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=512)
    except OSError as error:
        raise UsageError(
            f"{host} port {port} cannot be listened on: {error.strerror or error}. "
            "Take another --port, or stop what uses it."
        ) from error


def run_server(
    service: Service, keys: Keys, options: ServeOptions, bound: socket.socket, ready: Any = None
) -> None:
    """Serve until SIGINT or SIGTERM, then let running texts end.

    What was sent before the signal is answered, new requests on open connections get 503; a second
    Ctrl-C ends running texts too. `ready` is called with the server when it takes requests, and
    signals: whoever hears of it may send either.
    """
    import uvicorn

    class Server(uvicorn.Server):
        """A server that was asked to stop and did has not failed."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            """Begin, and say so: signals come to `handle_exit` since before this."""
            await super().startup(sockets)
            if self.started and ready is not None:
                ready(self)

        def handle_exit(self, sig: int, frame: Any) -> None:
            """Drain, and on a second Ctrl-C do not wait for it."""
            # Not uvicorn's own way, which raises the signal again when all is done.
            self.force_exit = self.should_exit and sig == signal.SIGINT
            self.should_exit = True

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            """Take in what was sent before the signal, refuse the rest, let texts end."""
            for _ in range(_LAST_TURNS):
                await asyncio.sleep(_TURN_SECONDS)
            service.draining = True
            await super().shutdown(sockets)

    config = uvicorn.Config(
        make_app(service, keys, options.guard, Origins(options.origins)),
        log_config=None,
        access_log=False,
        server_header=False,
        http=patient_protocol(options.guard.header_seconds),
        ws="none",
        h11_max_incomplete_event_size=options.guard.header_bytes,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=options.drain_seconds,
    )
    Server(config).run(sockets=[bound])


def describe(service: Service, options: ServeOptions, url: str) -> list[str]:
    """What a person is told when the server starts."""
    subnet = service.subnets.subnet(options.default_cut)
    limits = service.room.scheduler.limits
    return [
        f"{url} serves {', '.join(service.subnets.names())}",
        f"weights {format_bytes(subnet.weight_bytes)}, caches up to "
        f"{format_bytes(limits.cache_bytes)}, {limits.max_sequences} texts at a time",
    ]


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
