"""Live servers on loopback, of the small random artifact."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette")

import httpx
import openai
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from pliant.runtime import Tokenizer
from pliant.runtime.text_engine import Pliant, open_artifact
from pliant.serve.app import Service
from pliant.serve.safety import Keys
from pliant.serve.server import ServeOptions, listen, make_service, run_server

#: Seconds that anything in these tests may take before it counts as a hang.
PATIENCE = 30


class Live:
    """A running server: its address, its service, and clients for it."""

    def __init__(self, url: str, service: Service, model: Pliant) -> None:
        self.url, self.service, self.model = url, service, model
        self.http = httpx.Client(base_url=url, timeout=PATIENCE)

    def client(self, key: str = "none") -> openai.OpenAI:
        return openai.OpenAI(
            base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=PATIENCE
        )

    def post(self, path: str, **body: Any) -> httpx.Response:
        return self.http.post(path, json=body)

    def wait_idle(self) -> None:
        """Until nothing runs or waits."""
        end = time.monotonic() + PATIENCE
        while self.service.room.scheduler.has_work:
            assert time.monotonic() < end, "the server does not come to rest"
            time.sleep(0.01)

    def slow_down(self, seconds: float) -> None:
        """Let every step take longer, and none follow another; for a server of one's own."""
        room, step = self.service.room, self.service.room._step

        def slowly(run: Any) -> None:
            time.sleep(seconds)
            step(run)

        room._step = room._step_on = slowly  # type: ignore[method-assign]

    def fail_at(self, place: int) -> None:
        """Let the step of this place from now on fail, each being one of its own."""
        room, compute, left = self.service.room, type(self.service.room)._compute, [place]

        def fails(*arguments: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                raise RuntimeError("a bug")
            return compute(room, *arguments)

        room._compute, room._step_on = fails, room._step  # type: ignore[method-assign]


@contextmanager
def running(path: Path, keys: Keys | None = None, **changes: Any) -> Iterator[Live]:
    """A server in a thread of this process."""
    options = ServeOptions(**{"name": "tiny", "port": 0, "threads": 1, **changes})
    servers: list[Any] = []
    with open_artifact(path) as model, listen(options.host, options.port) as bound:
        service = make_service(model, options)
        arguments = (service, keys or Keys([]), options, bound, servers.append)
        thread = threading.Thread(target=run_server, args=arguments)
        thread.start()
        end = time.monotonic() + PATIENCE
        while not servers or not servers[0].started:
            assert thread.is_alive() and time.monotonic() < end, "the server does not start"
            time.sleep(0.01)
        live = Live(f"http://127.0.0.1:{bound.getsockname()[1]}", service, model)
        try:
            yield live
        finally:
            live.http.close()
            servers[0].should_exit = True
            thread.join(PATIENCE)
            assert not thread.is_alive(), "the server does not stop"


@pytest.fixture(scope="session")
def live(random_artifact: Path) -> Iterator[Live]:
    """One server that many tests share; leave it as it was."""
    with running(random_artifact) as server:
        yield server


@pytest.fixture
def serve(random_artifact: Path) -> Iterator[Callable[..., Live]]:
    """`serve(**options)` starts a server of its own for a test."""
    from contextlib import ExitStack

    with ExitStack() as stack:
        yield lambda keys=None, **changes: stack.enter_context(
            running(random_artifact, keys, **changes)
        )


@pytest.fixture(scope="session")
def bytes_tokenizer() -> Tokenizer:
    """Token 0 ends a text; the others are the bytes."""
    words = {
        token: place
        for place, token in enumerate(["<end>", *sorted(pre_tokenizers.ByteLevel.alphabet())])
    }
    backend = tokenizers.Tokenizer(models.BPE(vocab=words, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<end>"])
    return Tokenizer(backend, eos_ids=[0])
