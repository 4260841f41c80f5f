"""What the times of `engine_scaling.py` say: findings in sentences, and the table."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from pliant.measurement import format_seconds

#: What noise may hide: a finding is a time this much beyond what it should be.
TOLERANCE = 0.05
#: Decoding at a context may take this much more than its bytes account for.
CONTEXT_TOLERANCE = 0.15
Lines = list[dict[str, Any]]


def findings(answers: dict[str, Lines]) -> list[str]:
    """What is slower than it should be, in sentences."""
    return [
        *_of_tokens(answers["tokens"]),
        *_of_cuts(answers["cuts"]),
        *_of_batches(answers["batch"]),
        *_of_contexts(answers["context"]),
    ]


def _time(line: dict[str, Any]) -> float:
    """The shortest of the samples: noise only ever adds."""
    return float(line["seconds"]["low"])


def _of_tokens(lines: Lines) -> Iterator[str]:
    """Some tokens at once against as many steps of one, and against fewer."""
    one = _time(lines[0])
    for line in lines[1:]:
        if _time(line) > line["count"] * one * (1 + TOLERANCE):
            yield f"{line['count']} tokens at once take {_time(line) / one:.2f} times one token"
    for fewer, more in pairwise(lines):
        if _time(more) < _time(fewer) * (1 - TOLERANCE):
            part = _time(more) / _time(fewer)
            yield f"{more['count']} tokens take {part:.2f} of the time of {fewer['count']}: a cliff"


def _of_cuts(lines: Lines) -> Iterator[str]:
    """Every cut against the next larger one of its axis."""
    for larger, smaller in pairwise(lines):
        part = _time(smaller) / _time(larger)
        if larger["axis"] == smaller["axis"] and part >= 1:
            yield (
                f"{smaller['axis']} {smaller['kept']:g} is not faster than {larger['kept']:g}: "
                f"{part:.2f} of its time"
            )


def _of_batches(lines: Lines) -> Iterator[str]:
    """A token in a batch against one in a smaller batch."""
    for fewer, more in pairwise(lines):
        part = _time(more) / more["sequences"] / (_time(fewer) / fewer["sequences"])
        if part > 1 + TOLERANCE:
            yield (
                f"a token costs more in a batch of {more['sequences']} than of "
                f"{fewer['sequences']}: {part:.2f}"
            )


def _of_contexts(lines: Lines) -> Iterator[str]:
    """Decoding at a context against what its bytes account for."""
    for line in lines[1:]:
        slower = _time(line) / _time(lines[0])
        bytes_more = line["bytes"] / lines[0]["bytes"]
        if slower > bytes_more * (1 + CONTEXT_TOLERANCE):
            yield (
                f"at {line['context']} tokens of context decoding takes {slower:.2f} of the time "
                f"and reads {bytes_more:.2f} of the bytes"
            )


def table(answers: dict[str, Lines], caption: str) -> dict[str, Any]:
    """Columns and rows for `benchmarks/tables.py`."""
    shown = [line for line in answers["tokens"] if line["count"] & (line["count"] - 1) == 0]
    rows = [
        *(row(f"{line['sequences']} sequences", line, line["sequences"])
          for line in answers["batch"]),
        *(row(f"{line['count']} tokens of a prompt", line, line["count"]) for line in shown),
        *(row(f"1 token, {_cut(line)}", line, 1) for line in answers["cuts"]),
        *(row(f"1 token behind {line['context']}", line, 1) for line in answers["context"]),
    ]  # fmt: skip
    columns = ["step of", "time", "per token", "token/s", "of the roofline"]
    return {"columns": columns, "align": "lrrrr", "rows": rows, "caption": caption}


def _cut(line: dict[str, Any]) -> str:
    kept = f"{line['kept']:g}" if line["axis"] == "planes" else f"{line['kept']:.0%}"
    return f"{kept} {line['axis']}" if line["axis"] == "planes" else f"{line['axis']} {kept}"


def row(name: str, line: dict[str, Any], tokens: int) -> list[str]:
    """One step: its time, per token, and how near the roofline it is."""
    seconds = line["seconds"]["median"]
    return [
        name,
        format_seconds(seconds),
        format_seconds(seconds / tokens),
        f"{tokens / seconds:.1f}" if tokens / seconds < 100 else f"{tokens / seconds:.0f}",
        f"{line['of_bound']:.0%}",
    ]
