"""`python -m pliant.recipes.train_demo`: train the demo model from the command line."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from pliant.errors import PliantError
from pliant.measurement import format_seconds
from pliant.recipes.train_demo.config import DemoConfig
from pliant.recipes.train_demo.story import train_demo


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the recipe; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        config = DemoConfig(
            corpus=options.corpus,
            output=options.output,
            state=options.state,
            tokens=options.tokens,
            processes=options.processes,
        )
        parameters = config.shape.num_parameters
        tokens = config.num_steps * config.batch_tokens
        print(
            f"{parameters:,} parameters, {tokens:,} tokens ({tokens / parameters:.0f} per "
            f"parameter) in {config.num_steps:,} steps; state in {config.state}",
            file=sys.stderr,
        )
        print(train_demo(config, _Ticker()))
    except PliantError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


class _Ticker:
    """Prints progress and time left every ten seconds."""

    def __init__(self) -> None:
        self._first: tuple[float, int] | None = None
        self._printed = 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = now, done
        began, first = self._first
        if now - self._printed < 10 or done == first:
            return
        self._printed = now
        left = format_seconds((now - began) / (done - first) * (total - done))
        print(f"{stage}: step {done:,} of {total:,}, {left} left", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    defaults = DemoConfig()
    parser = argparse.ArgumentParser(
        prog="python -m pliant.recipes.train_demo", description=__doc__
    )
    parser.add_argument("--corpus", type=Path, default=defaults.corpus, help="folder of texts")
    parser.add_argument("--output", type=Path, default=defaults.output, help="checkpoint to write")
    parser.add_argument("--state", type=Path, default=defaults.state, help="resumable state")
    parser.add_argument("--tokens", type=int, help="length of the run (default: 100 per parameter)")
    parser.add_argument("--processes", type=int, default=defaults.processes, help="cores to use")
    return parser


if __name__ == "__main__":
    sys.exit(main())
