"""Tables of a report: of receipts, and of what fits on devices."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pliant.costs.planning import Choice, DevicePlan
from pliant.measurement import format_bytes, format_seconds
from pliant.receipt import Receipt
from pliant.recipes.report.facts import Report
from pliant.recipes.report.markup import Markup, element, joined
from pliant.recipes.report.names import address


def table(about: object, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Markup:
    """A table that scrolls by itself where it is wider than the screen.

    Columns that begin with `>` hold numbers. A cell may be a whole `<td>` already.
    """
    heads = [
        element("th", name.lstrip(">"), scope="col", class_="" if name.startswith(">") else "words")
        for name in columns
    ]
    body = [
        element("tr", *(_cell(value, name) for value, name in zip(row, columns, strict=True)))
        for row in rows
    ]
    drawn = element(
        "table",
        element("thead", element("tr", *heads)),
        element("tbody", *body),
    )
    # Beside the table, because a caption would scroll away with it.
    return joined(element("p", about, class_="soft"), element("div", drawn, class_="wide"))


def _cell(value: object, column: str) -> Markup:
    if isinstance(value, Markup) and value.startswith("<td"):
        return value
    return element("td", value, class_="" if column.startswith(">") else "words")


def receipt_table(receipts: Sequence[Receipt]) -> Markup:
    """Every receipt with the conditions it was measured under."""
    if not receipts:
        return element("p", "The artifact holds no receipts.")
    rows = [
        (
            element("code", one.address or "full"),
            format_bytes(one.weight_bytes),
            format_bytes(one.memory_bytes),
            f"{one.bits_per_byte:.3f}",
            f"{one.perplexity:.4g}",
            _optional(one.kl_nats, ".4f"),
            _optional(one.top1_agreement, ".1%"),
            "" if one.speed is None else str(one.speed),
            f"{one.conditions.text}, {one.conditions.tokens:,} tokens",
            element("td", one.canary or "", class_="long"),
        )
        for one in receipts
    ]
    columns = ("cut", ">weights", ">memory", ">bits/byte", ">perplexity", ">KL, nats",
               ">same first token", "speed", "measured on",
               "behind “Once upon a time”")  # fmt: skip
    return table("Measured when the artifact was built, by its engine.", columns, rows)


def format_speed(value: float) -> str:
    """Token/s without an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _optional(value: float | None, how: str) -> str:
    return "" if value is None else format(value, how)


def device_table(report: Report) -> Markup:
    """For each device the best cut that fits, and how fast it is expected to run."""
    if not report.devices:
        return element("p", "No devices were asked for.")
    request = report.request
    about = (
        f"Predicted: for {request.context:,} tokens of context and a prompt of {request.prompt:,}, "
        f"the best cut of the frontier that fits, by {report.ranked_by}. Times are estimates with "
        "their error; no engine can be faster than the bound."
    )
    columns = ("device", ">usable memory", "best that fits", ">needs", ">token/s", ">error",
               ">bound", ">first token", "basis")  # fmt: skip
    return table(about, columns, [_device_row(plan) for plan in report.devices])


def _device_row(plan: DevicePlan) -> tuple[object, ...]:
    device, option = plan.device, plan.chosen
    usable = format_bytes(device.memory_bytes)
    name = element("td", device.title, class_="name")
    if option is None:
        near = plan.nearest
        words = f"nothing fits; the smallest is {_address(near.choice)}"
        return (name, usable, words, format_bytes(near.total_bytes), "", "", "", "", "")
    engine = "" if device.runs_pliant else "; another engine than pliant's"
    return (
        name,
        usable,
        element("code", _address(option.choice)),
        format_bytes(option.total_bytes),
        format_speed(option.tokens_per_second),
        f"±{option.decode.error:.0%}",
        format_speed(1 / option.decode.bound_seconds),
        format_seconds(option.first_token.seconds),
        f"{option.decode.basis}{engine}",
    )


def _address(choice: Choice) -> str:
    return address(choice.subnet, choice.depth, choice.width)
