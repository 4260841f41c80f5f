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


#: What one stream is compared with.
BARE = "÷ bare engine"


def table(results: dict[str, Any]) -> dict[str, Any]:
    """Columns and rows for `benchmarks/tables.py`, ours above the other server in each case."""
    columns = ["model", "", "server", *(title for title, _, _ in COLUMNS), BARE, "failed"]
    rows = [row for model in results["models"] for row in _rows(model)]
    caption = " ".join(sentence for model in results["models"] for sentence in _sentences(model))
    return {
        "columns": columns, "rows": rows, "align": "lll" + "r" * (len(COLUMNS) + 2),
        "caption": caption,
    }  # fmt: skip


def render(results: dict[str, Any]) -> str:
    """The table as Markdown."""
    made = table(results)
    lines = [made["columns"], ["---"] * len(made["columns"]), *made["rows"]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{made['caption']}"


def _rows(found: dict[str, Any]) -> Iterator[list[str]]:
    for kind, one in found["one_stream"].items():
        yield _stream_row(found["model"], kind, one)
    others = {line["case"]: line for line in found["peer"]["lines"]} if "peer" in found else {}
    for ours in found["ours"]["lines"]:
        yield _row(found["model"], "pliant", ours)
        if ours["case"] in others:
            yield _row(found["model"], "llama.cpp", others[ours["case"]])
    yield _row(found["model"], "pliant", found["unpaced"])


def _sentences(found: dict[str, Any]) -> Iterator[str]:
    yield (
        f"{found['model']} with {found['planes']} planes, {found['threads']} threads, long prompts "
        f"of {found['long_words']} words."
    )
    for kind, one in found["one_stream"].items():
        if one["turns"]:
            yield (
                f"One {kind} stream: {one['served_rate']['median']:.0f} token/s, bare engine "
                f"{one['bare_rate']['median']:.0f}, in {one['turns']} turns."
            )
    rates = {
        name: found[kind]["capacity"]["requests_per_second"]
        for kind, name in (("ours", "pliant"), ("peer", "llama.cpp"))
        if kind in found and "capacity" in found[kind]
    }
    if rates:
        shown = ", ".join(f"{name} {rate:.3g}" for name, rate in rates.items())
        yield f"Capacity, requests/s: {shown}."
    if found.get("left_out"):
        yield f"{found['left_out']}."


def _stream_row(model: str, kind: str, one: dict[str, Any]) -> list[str]:
    """The speed of one stream, and its ratio to that of the bare engine with quartiles."""
    rate, ratio = "-", "-"
    if one["turns"]:
        rate = _digits(one["served_rate"]["median"])
        low, median, high = (f"{one['ratio'][name]:.2f}" for name in ("low", "median", "high"))
        ratio = f"{median} [{low}, {high}]"
    others = ["-"] * (len(COLUMNS) - 1)
    return [model, f"one stream, {kind}", "pliant", rate, *others, ratio, "-"]


def _row(model: str, server: str, line: dict[str, Any]) -> list[str]:
    cells = (
        "-" if line[field] is None else _digits(line[field] * factor)
        for _, field, factor in COLUMNS
    )
    return [model, str(line["case"]), server, *cells, "-", str(line["failed"])]


def _digits(value: float) -> str:
    return f"{value:.3g}" if value < 999.5 else f"{value:,.0f}"
