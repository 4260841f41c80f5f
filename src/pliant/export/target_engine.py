"""`TargetEngine`: the engine that an export is for, in an interpreter of its own.

It runs outside this process because it may lie in another environment, and because a file that it
does not like may end it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pliant.errors import UsageError, VerificationError

_FOLDER = Path(__file__).parent / "engines"
#: Module that each target's engine needs, and how it is installed.
_NEEDS = {
    "hf": ("transformers", "pip install transformers torch"),
    "gguf": ("llama_cpp", "pip install llama-cpp-python"),
}
_SECONDS_TO_END = 30


class TargetEngine:
    """A loaded export: `engine` names it, `seconds` it took to load, `context` is its most tokens.

    `python` is an interpreter that has the engine, used where this one lacks it. `UsageError` where
    there is none, `VerificationError` where the engine refuses or ends.
    """

    def __init__(self, target: str, path: Path, python: str | None = None, threads: int = 1):
        reason = missing_engine(target)
        if reason is None:
            python = sys.executable
        elif python is None:
            raise UsageError(reason)
        self._target = target
        self._words = tempfile.TemporaryFile(mode="w+", encoding="utf-8")  # noqa: SIM115
        command_line = [python, str(_FOLDER / "run.py"), target]
        try:
            self._process = subprocess.Popen(
                command_line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._words,
                text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"},
            )  # fmt: skip
        except OSError as error:
            self._words.close()
            raise UsageError(
                f"{command_line[0]} cannot be run: {error.strerror}; give --peer-python the path "
                f"of an interpreter with {_NEEDS[target][0]}."
            ) from error
        try:
            loaded = self._ask("load", path=str(path.resolve()), threads=threads)
        except BaseException:
            self.close()
            raise
        self.engine: str = loaded["engine"]
        self.seconds: float = loaded["seconds"]
        self.context: int = loaded["context"]

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text."""
        return [list(ids) for ids in self._ask("encode", texts=list(texts))["ids"]]

    def chat(self, messages: Sequence[Mapping[str, object]]) -> list[int] | None:
        """Token ids of a conversation up to the answer; None without a chat template."""
        ids = self._ask("chat", messages=list(map(dict, messages)))["ids"]
        return None if ids is None else list(ids)

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Logits behind each token, float32 `[n, vocabulary]`."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "logits"
            answer = self._ask("logits", tokens=list(tokens), output=str(file))
            values = np.fromfile(file, "<f4")
        if values.size != len(tokens) * answer["vocabulary"]:
            raise VerificationError(f"{self.engine} wrote {values.size} logits; report this.")
        return values.reshape(len(tokens), -1)

    def greedy(self, tokens: Sequence[int], count: int) -> list[int]:
        """The `count` likeliest tokens after `tokens`, end tokens included."""
        return list(self._ask("greedy", tokens=list(tokens), count=count)["tokens"])

    def _ask(self, action: str, **request: Any) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"action": action, **request}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        answer = json.loads(line) if line else {"error": self._last_words()}
        if "error" not in answer:
            return dict(answer)
        if answer["error"].startswith("ModuleNotFoundError"):
            raise UsageError(
                f"The interpreter of --peer-python cannot run {self._target}: {answer['error']}; "
                f"{_NEEDS[self._target][1]} there."
            )
        raise VerificationError(
            f"The {self._target} engine failed at {action!r}: {answer['error']}. What was exported "
            "does not work there; report the model's config."
        )

    def _last_words(self) -> str:
        self._words.seek(0)
        return (self._words.read().strip().splitlines() or ["it ended without a word"])[-1]

    def close(self) -> None:
        """End the engine; closing twice is harmless."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            self._process.stdin.close()
        try:
            self._process.wait(_SECONDS_TO_END)
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


def missing_engine(target: str) -> str | None:
    """What to do where this interpreter lacks what runs a target; None where it has it."""
    module, command = _NEEDS[target]
    try:
        found = importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        found = False
    if found:
        return None
    return (
        f"Verifying in {target} needs {module}, which is not installed here: {command}, or name an "
        "interpreter that has it with --peer-python. Exports are written unverified with "
        "--no-verify."
    )
