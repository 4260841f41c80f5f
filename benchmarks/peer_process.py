"""`PeerProcess`: another engine in an interpreter of its own, asked by JSON lines."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self


class PeerError(Exception):
    """A peer that cannot be started, or that refused what it was asked."""


class PeerProcess:
    """A running `peer_*.py`; its own words on stderr go to a file that errors quote."""

    def __init__(self, python: str, script: Path, hint: str) -> None:
        self._name, self._hint = script.stem, hint
        self._words = tempfile.TemporaryFile(mode="w+", encoding="utf-8")  # noqa: SIM115
        try:
            self._process = subprocess.Popen(
                [python, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=self._words, text=True,
            )  # fmt: skip
        except OSError as error:
            raise PeerError(f"{python} cannot be run: {error.strerror}. {hint}") from error

    def ask(self, action: str, **request: Any) -> dict[str, Any]:
        """The answer to one request; `PeerError` where there is none, or it is a refusal."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"action": action, **request}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._words.seek(0)
            last = self._words.read().strip().splitlines()[-1:] or ["it said nothing"]
            raise PeerError(f"{self._name} ended at {action!r}: {last[0]}. {self._hint}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise PeerError(f"{self._name} refused {action!r}: {answer['error']}")
        return answer

    def close(self) -> None:
        """End the process."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._words.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
