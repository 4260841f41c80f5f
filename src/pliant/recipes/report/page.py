"""The page of a report: one HTML file that loads nothing, read on a phone or a desk."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import msgspec

from pliant.measurement import format_bytes
from pliant.recipes.report.facts import HeatMap, Report
from pliant.recipes.report.markup import Markup, element, joined
from pliant.recipes.report.pictures import scatter
from pliant.recipes.report.point import Point
from pliant.recipes.report.style import STYLE
from pliant.recipes.report.tables import device_table, format_speed, receipt_table, table
from pliant.search import frontier
from pliant.spec import BLOCK_MATRICES

#: Nothing may be loaded, whatever the page says.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_MEASURED = element("span", "measured", class_="mark measured")
_PREDICTED = element("span", "predicted", class_="mark predicted")


def render_page(report: Report) -> str:
    """The page as text."""
    name = report.artifact.path.resolve().name
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", f"{name}: report"),
        # A constant of ours: quotes and braces of a style must stay as they are.
        element("style", Markup(STYLE)),
    )
    body = element(
        "body",
        element("h1", name),
        _summary(report),
        _section("frontier", "Loss, size and speed", _frontier(report)),
        _section("shapes", "Depth and width", _shapes(report)),
        _section("bits", "Planes by matrix", _bits(report)),
        _section("receipts", "Receipts", receipt_table(report.artifact.manifest.receipts)),
        _section("devices", "Devices", device_table(report)),
    )
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"


def _section(place: str, title: str, *content: Markup) -> Markup:
    return element("section", element("h2", title), *content, id=place)


def _summary(report: Report) -> Markup:
    artifact = report.artifact
    manifest, spec, full = artifact.manifest, artifact.spec, artifact.subnet()
    facts: list[tuple[str, object]] = [
        ("made from", f"{manifest.source.name} by pliant {manifest.pliant_version}"),
        ("on disk", f"{format_bytes(artifact.num_bytes)}, {artifact.num_planes} planes"),
        ("model", f"{spec.architecture}, {full.num_parameters:,} parameters, {spec.num_blocks} "
                  f"blocks, context {spec.max_context:,}"),
        ("saved cuts", ", ".join(artifact.subnet_names()) or "none"),
    ]  # fmt: skip
    pairs = [part for key, value in facts for part in (element("dt", key), element("dd", value))]
    legend = element(
        "p", _MEASURED, " was run by pliant's engine on a text; ", _PREDICTED,
        " was computed from measurements of other cuts, or from a device's figures.",
        class_="soft",
    )  # fmt: skip
    return joined(element("dl", *pairs), legend)


def _frontier(report: Report) -> Markup:
    points = [*report.measured, *report.predicted]
    if not points:
        return _nothing("No cut was measured and the artifact has no sensitivities.", report)
    parts = [
        element("figure", scatter(
            points, lambda one: one.weight_bytes, label="bytes of weights", tick=format_bytes,
            title="Loss over the full model against bytes of weights",
        ), element("figcaption", "Filled circles: measured, the frontier large; empty squares: "
                   "predicted by adding the losses of single axes, mostly too low.")),
        _speeds(report.measured),
        _point_table(points),
    ]  # fmt: skip
    return joined(*parts, _notes(report))


def _speeds(measured: Sequence[Point]) -> Markup:
    """Loss against speed, on the machine most cuts were timed on."""
    machines = [point.machine for point in measured if point.tokens_per_second]
    if not machines:
        return element("p", "No speed of a cut was measured; `pliant fit --tokens-per-second` "
                       "measures it.", class_="soft")  # fmt: skip
    machine = max(dict.fromkeys(machines), key=machines.count)
    timed = _fastest([point for point in measured if point.machine == machine])
    title = "Loss over the full model against token/s"
    return element(
        "figure",
        scatter(timed, lambda one: one.tokens_per_second or 1.0, label="token/s, measured",
                tick=format_speed, title=title),
        element("figcaption", f"Decoding one sequence on {machine}."),
    )  # fmt: skip


def _fastest(points: Sequence[Point]) -> list[Point]:
    """The points, those on the frontier of loss and speed marked."""
    best = frontier(points, lambda one: -(one.tokens_per_second or 0), lambda one: one.loss)
    return [replace(one, on_frontier=one in best) for one in points]


def _point_table(points: Sequence[Point]) -> Markup:
    rows = [
        (
            element("code", point.name),
            format_bytes(point.weight_bytes),
            f"{point.loss:+.2%}",
            _MEASURED if point.is_measured else _PREDICTED,
            "" if point.bits_per_byte is None else f"{point.bits_per_byte:.3f}",
            "" if point.tokens_per_second is None else format_speed(point.tokens_per_second),
            point.source,
        )
        for point in sorted(points, key=lambda one: (one.weight_bytes, one.is_measured))
        if point.on_frontier
    ]
    columns = ("cut", ">weights", ">loss over full", "", ">bits/byte", ">token/s", "from")
    return table("The frontier: nothing from the same source is smaller and better.",
                 columns, rows)  # fmt: skip


def _shapes(report: Report) -> Markup:
    heat = report.heat_map
    if heat is None:
        return _nothing("The artifact has no sensitivities, so no losses of shapes.", report)
    most = max(0.01, *(min(point.loss, 2.0) for point in heat.cells.values()))
    rows = [[str(depth), *(_cell(heat, depth, width, most) for width in heat.widths)]
            for depth in heat.depths]  # fmt: skip
    columns = ("blocks", *(f">width {width:g}" for width in heat.widths))
    return table(
        f"Loss over the full model at {heat.planes} planes. Values with a dot (•) were measured, "
        "all others are predicted.",
        columns,
        rows,
    )


def _cell(heat: HeatMap, depth: int, width: float, most: float) -> Markup:
    point = heat.cells.get((depth, width))
    if point is None:
        return element("td", "")
    part = 70 * min(max(point.loss, 0.0) / most, 1.0) ** 0.5
    words = f"{point.loss:+.1%}" + (" •" if point.is_measured else "")
    kind = "measured" if point.is_measured else "predicted"
    return element("td", words, class_="heat", style=f"--part: {part:.0f}%",
                   title=f"{point.name}, {kind} ({point.source})")  # fmt: skip


def _bits(report: Report) -> Markup:
    subnet = report.shown
    rows: list[list[object]] = [
        [str(block), *(_planes(count) for count in msgspec.structs.astuple(bits))]
        for block, bits in zip(subnet.shape.blocks, subnet.bits.blocks, strict=True)
    ]
    about = joined(
        "Planes (bits) that ", element("code", report.shown_name), " reads, ", report.shown_why,
        f": embedding {subnet.bits.embedding}, head {subnet.bits.head}, "
        f"{subnet.effective_bits:.2f} bits a parameter with everything counted, "
        f"{format_bytes(subnet.weight_bytes)} of weights.",
    )  # fmt: skip
    columns = ("block", *(f">{name}" for name in BLOCK_MATRICES))
    return table(about, columns, rows)


def _planes(count: int) -> Markup:
    return element("td", str(count), class_="planes", style=f"--part: {8 * count}%")


def _notes(report: Report) -> Markup:
    items: Iterable[Markup] = [element("li", note) for note in report.notes]
    if not report.notes:
        return Markup("")
    return joined(element("p", "Left out:", class_="soft"), element("ul", *items, class_="soft"))


def _nothing(why: str, report: Report) -> Markup:
    return joined(element("p", why), _notes(report))
