"""Results of `serving.py` as Markdown."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

#: Column, its field, and what a field is multiplied by.
COLUMNS = (
    ("token/s", "tokens_per_second", 1.0),
    ("first token p50, ms", "first_token_p50", 1e3),
    ("p99", "first_token_p99", 1e3),
    ("between p50, ms", "between_p50", 1e3),
    ("p99", "between_p99", 1e3),
    ("fluidity", "fluidity", 1.0),
)


def render(results: dict[str, Any]) -> str:
    """A table for each model, ours above the other server in each case."""
    return "\n".join(line for model in results["models"] for line in _model(model))


def _model(found: dict[str, Any]) -> Iterator[str]:
    yield f"{found['model']}, {found['planes']} planes, {found['threads']} threads."
    one = found["one_stream"]
    if one["turns"]:
        yield (
            f"One stream: {one['served_rate']:.0f} token/s, bare engine {one['bare_rate']:.0f}; "
            f"ratio {one['ratio']:.3f} [{one['ratio_low']:.3f}, {one['ratio_high']:.3f}] "
            f"n={one['turns']}"
        )
    yield ""
    yield "| | server | " + " | ".join(title for title, _, _ in COLUMNS) + " | failed |"
    yield "|---|---|" + "---:|" * (len(COLUMNS) + 1)
    others = found["peer"]["lines"] if "peer" in found else [None] * len(found["ours"]["lines"])
    for ours, other in zip(found["ours"]["lines"], others, strict=True):
        yield _row("pliant", ours)
        if other is not None:
            yield _row("llama.cpp", other)
    yield _row("pliant", found["unpaced"])
    yield ""
    rates = {
        name: found[kind]["capacity"]["requests_per_second"]
        for kind, name in (("ours", "pliant"), ("peer", "llama.cpp"))
        if kind in found and "capacity" in found[kind]
    }
    if rates:
        shown = ", ".join(f"{name} {rate:.3g}" for name, rate in rates.items())
        yield f"Capacity, requests/s: {shown}"
        yield ""


def _row(server: str, line: dict[str, Any]) -> str:
    cells = (
        "-" if line[field] is None else f"{line[field] * factor:.3g}"
        for _, field, factor in COLUMNS
    )
    return f"| {line['case']} | {server} | {' | '.join(cells)} | {line['failed']} |"
