"""One self-contained HTML page of a run: numbers, and distributions as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from pliant.load.fluidity import Deadlines
from pliant.load.record import LoadReport, Percentiles, RequestRecord

_WIDTH, _HEIGHT = 640, 160

_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>pliant load</title><style>
:root { color-scheme: light dark; --line: #2f6f4f; --late: #b3402c; --soft: #75706a; }
@media (prefers-color-scheme: dark) { :root { --line: #6fbf95; --late: #e0745f; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 44rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; } td, th { padding: .2rem .8rem .2rem 0; text-align: right; }
td:first-child, th:first-child { text-align: left; }
svg { width: 100%; } path { fill: none; stroke: var(--line); stroke-width: 2; }
line { stroke: var(--late); stroke-dasharray: 4; } text { fill: var(--soft); font-size: 11px; }
</style></head><body>
"""


def render_page(
    title: str, report: LoadReport, records: Sequence[RequestRecord], deadlines: Deadlines
) -> str:
    """The page as text; it loads nothing."""
    gaps = [record.gaps for record in records if record.times]
    parts = [
        _HEAD,
        f"<h1>{escape(title)}</h1>",
        _facts(report),
        _table(report),
        _curve("Time to first token", [g[0] / 1e6 for g in gaps], deadlines.first / 1e6),
        _curve(
            "Between tokens",
            [gap / 1e6 for of_one in gaps for gap in of_one[1:]],
            deadlines.between / 1e6,
        ),
        _curve("Missed deadlines", [100 * (1 - index) for index in report.fluidity], 10, "%"),
    ]
    return "\n".join([*parts, "</body></html>", ""])


def _facts(report: LoadReport) -> str:
    errors = "; ".join(f"{count} × {escape(reason)}" for reason, count in report.errors.items())
    failed = f", {report.failed} of them failed ({errors})," if report.failed else ""
    left = f" {report.unfinished} more were not finished." if report.unfinished else ""
    index = sum(report.fluidity) / max(len(report.fluidity), 1)
    return (
        f"<p>{report.requests} requests{failed} in {report.duration:.1f} s: "
        f"{report.requests_per_second:.2f} requests/s, {report.tokens_per_second:.1f} token/s. "
        f"The mean fluidity-index is {index:.3f}; {report.fluid_share:.0%} of texts are fluid; the "
        f"99th percentile of missed deadlines is {report.missed_p99:.0%}.{left}</p>"
    )


def _table(report: LoadReport) -> str:
    rows = [
        ("time to first token", report.first_token),
        ("between tokens", report.between_tokens),
        ("mean of a text", report.per_token),
        ("whole request by token", report.normalized),
    ]
    cells = "".join(_row(name, found) for name, found in rows if found is not None)
    head = "".join(f"<th>{name}</th>" for name in ("ms", "n", "mean", "p50", "p90", "p99", "most"))
    return f"<table><tr>{head}</tr>{cells}</table>"


def _row(name: str, found: Percentiles) -> str:
    values = (found.mean, found.p50, found.p90, found.p99, found.highest)
    numbers = "".join(f"<td>{1000 * value:.1f}</td>" for value in values)
    return f"<tr><td>{name}</td><td>{found.n}</td>{numbers}</tr>"


def _curve(title: str, sample: Sequence[float], deadline: float, unit: str = "ms") -> str:
    """The cumulative distribution of a sample, with the deadline or another bound."""
    if not sample:
        return ""
    values = sorted(sample)
    most = max(values[-1], deadline, 1e-9) * 1.05
    step = max(len(values) // 300, 1)
    places = [*range(0, len(values), step), len(values) - 1]
    points = " ".join(
        f"{'L' if number else 'M'}{values[place] / most * _WIDTH:.1f},"
        f"{_HEIGHT * (1 - (place + 1) / len(values)):.1f}"
        for number, place in enumerate(places)
    )
    at, bound = deadline / most * _WIDTH, "deadline" if unit == "ms" else "bound"
    return (
        f'<h2>{title}, {unit}</h2><svg viewBox="0 -10 {_WIDTH} {_HEIGHT + 30}" role="img" '
        f'aria-label="Cumulative distribution of {title.lower()}">'
        f'<path d="{points}"/><line x1="{at:.1f}" x2="{at:.1f}" y1="0" y2="{_HEIGHT}"/>'
        f'<text x="{at + 4:.1f}" y="{_HEIGHT + 14}">{bound} {deadline:g}</text>'
        f'<text x="0" y="{_HEIGHT + 14}">0</text>'
        f'<text x="{_WIDTH}" y="{_HEIGHT + 14}" text-anchor="end">{most:.0f}</text></svg>'
    )
