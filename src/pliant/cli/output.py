"""Where a command's words go: data on stdout, notes and progress on stderr, JSON when asked."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import msgspec

from pliant.measurement import Progress, format_bytes, peak_memory_bytes, silent

if TYPE_CHECKING:
    from rich.table import Table

#: Columns of a table that nobody looks at on a terminal: wide enough to never wrap.
_PIPE_WIDTH = 200


class Output:
    """The two streams of one run of a command."""

    def __init__(self, as_json: bool, quiet: bool) -> None:
        self.as_json = as_json
        self.quiet = quiet

    def emit(self, data: object, *readable: object) -> None:
        """Print the result: `data` as one JSON object, or the `readable` lines and tables."""
        if self.as_json:
            sys.stdout.write(msgspec.json.format(msgspec.json.encode(data), indent=2).decode())
            sys.stdout.write("\n")
        else:
            # Captured, because a console that prints ends the process itself on a closed pipe.
            console = _console(sys.stdout)
            with console.capture() as captured:
                for line in readable:
                    console.print(line, soft_wrap=isinstance(line, str))
            sys.stdout.write(captured.get())
        sys.stdout.flush()

    def emit_line(self, data: object) -> None:
        """Print one result of many as a JSON object on a line of its own."""
        sys.stdout.write(msgspec.json.encode(data).decode() + "\n")
        sys.stdout.flush()

    def note(self, text: str) -> None:
        """A line for the reader's information on stderr; nothing with --quiet."""
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    @contextmanager
    def progress(self) -> Iterator[Progress]:
        """A `Progress` that draws a bar with time left and peak memory on a terminal's stderr."""
        if self.quiet or not sys.stderr.isatty():
            yield silent
            return
        with _bars() as bars:
            tasks: dict[str, Any] = {}

            def advance(stage: str, done: int, total: int) -> None:
                if stage not in tasks:
                    tasks[stage] = bars.add_task(stage, total=total, peak="")
                peak = f"peak {format_bytes(peak_memory_bytes())}"
                bars.update(tasks[stage], completed=done, total=total, peak=peak)

            yield advance


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table; columns whose name begins with `>` are aligned right."""
    from rich import box
    from rich.table import Table

    drawn = Table(title=title or None, box=box.SIMPLE, title_justify="left")
    for column in columns:
        justify = "right" if column.startswith(">") else "left"
        drawn.add_column(column.lstrip(">"), justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for row in rows:
        drawn.add_row(*row)
    return drawn


def facts(pairs: Iterable[tuple[str, object]]) -> str:
    """Lines of a name and its value, the values below each other."""
    lines = list(pairs)
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines)


def _console(file: Any) -> Any:
    from rich.console import Console

    width = None if file.isatty() else _PIPE_WIDTH
    return Console(file=file, width=width, highlight=False, markup=False, emoji=False)


def _bars() -> Any:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[peak]}"),
        console=Console(stderr=True),
    )
