"""`render_csv`: a line for each request of a run."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from pliant.load.fluidity import Deadlines, PrefillCurve
from pliant.load.record import RequestRecord, judge

_COLUMNS = ("arrived_ns", "late_ns", "words", "prompt_tokens", "tokens", "first_token_ns",
            "last_token_ns", "deadlines", "missed", "error")  # fmt: skip


def render_csv(
    records: Sequence[RequestRecord], deadlines: Deadlines, curve: PrefillCurve | None = None
) -> str:
    """The table as text. Times are nanoseconds of one clock; a request that failed has none."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(_COLUMNS)
    for record in records:
        judged: tuple[object, ...] = ("",) * 4
        if record.times:
            found = judge(record, deadlines, curve)
            judged = (record.times[0], record.times[-1], found.deadlines, found.missed)
        lines.writerow((record.arrived, record.late, record.words, record.prompt_tokens,
                        len(record.times), *judged, record.error or ""))  # fmt: skip
    return text.getvalue()
