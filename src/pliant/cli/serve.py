"""`pliant serve`: an artifact behind the HTTP interface of the OpenAI API."""

from __future__ import annotations

import logging
import os
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from pliant.cli.options import Address, Json, KvWindow, Quiet, Threads
from pliant.cli.output import Output
from pliant.measurement import parse_bytes, parse_seconds

Host = Annotated[
    str, typer.Option("--host", envvar="PLIANT_HOST", metavar="HOST", help="Where to listen.")
]
Port = Annotated[
    int,
    typer.Option(
        "--port", envvar="PLIANT_PORT", metavar="N", min=0, max=65535, help="0 takes a free one."
    ),
]
ModelName = Annotated[
    str | None,
    typer.Option(
        "--model-name",
        envvar="PLIANT_MODEL_NAME",
        metavar="NAME",
        help="What clients call the model (the name of the artifact).",
    ),
]
KeyFile = Annotated[
    Path | None,
    typer.Option(
        "--keys",
        envvar="PLIANT_KEYS",
        metavar="FILE",
        help="Bearer keys, one a line as KEY or NAME:KEY; or PLIANT_API_KEYS, with commas.",
    ),
]
CacheMemory = Annotated[
    int | None,
    typer.Option(
        "--cache-memory",
        envvar="PLIANT_CACHE_MEMORY",
        parser=parse_bytes,
        metavar="SIZE",
        help="Most bytes of all caches (a quarter of the free memory, or what is needed).",
    ),
]
CacheKind = Annotated[
    str | None,
    typer.Option(
        "--cache-type",
        envvar="PLIANT_CACHE_TYPE",
        metavar="TYPE",
        help="Keys and values of every cut as float16, float32, int8, int4, int3 or int2 "
        "(as each cut says).",
    ),
]
ServeKvBits = Annotated[
    int | None,
    typer.Option(
        "--kv-bits",
        envvar="PLIANT_KV_BITS",
        metavar="N",
        help="The same by its bits: 32, 16, 8, 4, 3 or 2; goes before --cache-type.",
    ),
]
MaxSequences = Annotated[
    int,
    typer.Option(
        "--max-sequences",
        envvar="PLIANT_MAX_SEQUENCES",
        metavar="N",
        min=1,
        max=256,
        help="Texts written at the same time.",
    ),
]
MaxWaiting = Annotated[
    int,
    typer.Option(
        "--max-waiting",
        envvar="PLIANT_MAX_WAITING",
        metavar="N",
        min=1,
        help="Texts that wait; more are refused with 429.",
    ),
]
StepTime = Annotated[
    float | None,
    typer.Option(
        "--step-time",
        envvar="PLIANT_STEP_TIME",
        parser=parse_seconds,
        metavar="TIME",
        help="What a step should take, as long prompts are computed in parts (50ms).",
    ),
]
MaxSubnets = Annotated[
    int,
    typer.Option(
        "--max-subnets",
        envvar="PLIANT_MAX_SUBNETS",
        metavar="N",
        min=1,
        help="Subnets open at the same time.",
    ),
]
Auto = Annotated[
    list[str] | None,
    typer.Option(
        "--auto",
        envvar="PLIANT_AUTO",
        metavar="CUT",
        help="A cut that NAME@auto may take under load; repeatable (the saved cuts).",
    ),
]
SharePrefixes = Annotated[
    bool,
    typer.Option(
        "--share-prefixes",
        envvar="PLIANT_SHARE_PREFIXES",
        help="Let clients share computed beginnings; how fast one is answered may then tell "
        "what another asked.",
    ),
]
Rate = Annotated[
    int,
    typer.Option(
        "--requests-per-minute",
        envvar="PLIANT_REQUESTS_PER_MINUTE",
        metavar="N",
        min=0,
        help="Of one client; 0 is no limit.",
    ),
]
AllowedOrigins = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-origin",
        envvar="PLIANT_ALLOW_ORIGIN",
        metavar="ORIGIN",
        help="Pages that may use this server from a browser, as https://HOST; repeatable (only "
        "its own).",
    ),
]
DrainTime = Annotated[
    float | None,
    typer.Option(
        "--drain-time",
        envvar="PLIANT_DRAIN_TIME",
        parser=parse_seconds,
        metavar="TIME",
        help="How long running texts may go on after SIGTERM (30s).",
    ),
]


def serve(
    address: Address,
    host: Host = "127.0.0.1",
    port: Port = 8321,
    model_name: ModelName = None,
    keys: KeyFile = None,
    cache_memory: CacheMemory = None,
    cache_type: CacheKind = None,
    kv_bits: ServeKvBits = None,
    kv_window: KvWindow = None,
    max_sequences: MaxSequences = 16,
    max_waiting: MaxWaiting = 256,
    step_time: StepTime = None,
    max_subnets: MaxSubnets = 4,
    auto: Auto = None,
    share_prefixes: SharePrefixes = False,
    requests_per_minute: Rate = 0,
    allow_origin: AllowedOrigins = None,
    drain_time: DrainTime = None,
    threads: Threads = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Serve an artifact to clients of the OpenAI API, every subnet of it as a model.

    The cut of the address is the default model; NAME@CUT asks for another one. Listens on this
    machine only unless there are keys. One JSON line for each request goes to stderr; SIGTERM and
    Ctrl-C let running texts end.
    """
    from pliant.artifact import split_address
    from pliant.bits.cache import CacheFormat
    from pliant.runtime.text_engine import open_artifact
    from pliant.serve.safety import GuardLimits, Keys
    from pliant.serve.server import ServeOptions, listen, make_service, require_serve

    require_serve()
    output = Output(as_json, quiet)
    path, cut = split_address(address)
    secrets = Keys.read(keys, os.environ.get("PLIANT_API_KEYS"))
    options = ServeOptions(
        name=model_name or path.resolve().stem,
        host=host,
        port=port,
        default_cut=cut,
        auto_cuts=tuple(auto or ()),
        max_subnets=max_subnets,
        threads=threads,
        cache_type=cache_type if kv_bits is None else CacheFormat(bits=kv_bits).type,  # type: ignore[arg-type]
        cache_window=kv_window,
        cache_bytes=cache_memory,
        max_sequences=max_sequences,
        max_waiting=max_waiting,
        step_seconds=0.05 if step_time is None else step_time,
        share_prefixes=share_prefixes,
        origins=tuple(allow_origin or ()),
        drain_seconds=30 if drain_time is None else round(drain_time),
        guard=GuardLimits(requests_per_minute=requests_per_minute),
    )
    options.check(secrets)
    with open_artifact(path) as model, listen(host, port) as bound:
        service = make_service(model, options, _log if not quiet else None)
        _run(service, secrets, options, bound, output)


def _run(service: Any, secrets: Any, options: Any, bound: Any, output: Output) -> None:
    from pliant.serve.server import describe, run_server

    shown = f"[{options.host}]" if ":" in options.host else options.host
    url = f"http://{shown}:{bound.getsockname()[1]}"

    def announce(server: Any) -> None:
        """Say where it listens."""
        for line in describe(service, options, url):
            output.note(line)
        if output.as_json:
            output.emit_line({"url": url, "model": options.name, "models": service.subnets.names()})

    # asyncio warns of every event that is sent to a client who has just gone.
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    run_server(service, secrets, options, bound, announce)
    output.note("stopped")


_writing = threading.Lock()


def _log(record: dict[str, Any]) -> None:
    """One JSON line on stderr."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    line = msgspec.json.encode({"time": now, **record}).decode() + "\n"
    with _writing:
        sys.stderr.write(line)
        sys.stderr.flush()
