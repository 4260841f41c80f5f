"""Scatter pictures as inline SVG: logarithmic axes, a shape for measured, another for predicted."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from pliant.recipes.report.markup import Markup, element, joined
from pliant.recipes.report.point import Point

#: Units of a picture; narrow, so that its words can be read on a phone.
_WIDTH, _HEIGHT = 480, 330
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 12, 46
#: Losses below this are drawn here: noise of the measurement, or better than the full model.
_LEAST_LOSS = 0.001
_LOSS_TICKS = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0)
_MOST_TICKS = 5


class Axis:
    """A logarithmic axis from `low` to `high`, both above 0, drawn from `begin` to `end`."""

    def __init__(self, low: float, high: float, begin: float, end: float) -> None:
        # A picture of one point still has an extent.
        self.low, self.high = math.log10(low) - 0.05, math.log10(high) + 0.05
        self._begin, self._end = begin, end

    def place(self, value: float) -> float:
        """Where a value lies, in units of the picture."""
        part = (math.log10(value) - self.low) / (self.high - self.low)
        return self._begin + min(max(part, 0.0), 1.0) * (self._end - self._begin)

    def ticks(self) -> list[float]:
        """A few round values within."""
        decades = range(math.floor(self.low), math.ceil(self.high) + 1)
        for steps in ((1, 2, 5), (1, 3), (1,)):
            found = [step * 10.0**decade for decade in decades for step in steps]
            found = [one for one in found if self.low <= math.log10(one) <= self.high]
            if len(found) <= _MOST_TICKS:
                return found
        return found[:: -(-len(found) // _MOST_TICKS)]


def scatter(
    points: Sequence[Point],
    across: Callable[[Point], float],
    *,
    label: str,
    tick: Callable[[float], str],
    title: str,
) -> Markup:
    """Loss over a quantity above 0 as a picture; frontiers are joined by a line.

    `label` names the horizontal axis, `tick` writes its values, `title` is read aloud.
    """
    values = [across(point) for point in points]
    losses = [max(point.loss, _LEAST_LOSS) for point in points]
    x_axis = Axis(min(values), max(values), _LEFT, _WIDTH - _RIGHT)
    y_axis = Axis(_LEAST_LOSS, max(*losses, 0.1), _HEIGHT - _BOTTOM, _TOP)
    lines = [
        _line(points, is_measured, across, x_axis, y_axis) for is_measured in (False, True)
    ]  # fmt: skip
    # Frontier last, so that it lies on top.
    ordered = sorted(points, key=lambda point: (point.on_frontier, point.is_measured))
    dots = [_dot(point, x_axis.place(across(point)), y_axis) for point in ordered]
    return element(
        "svg",
        element("title", title),
        _grid(x_axis, y_axis, tick),
        element("text", label, x=(_LEFT + _WIDTH - _RIGHT) / 2, y=_HEIGHT - 6, class_="middle"),
        *lines,
        *dots,
        viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
        role="img",
        aria_label=title,
    )


def _grid(x_axis: Axis, y_axis: Axis, tick: Callable[[float], str]) -> Markup:
    parts = []
    for value in _LOSS_TICKS:
        if math.log10(value) > y_axis.high:
            break
        y = f"{y_axis.place(value):.1f}"
        words = f"+{100 * value:g}%" if value > _LEAST_LOSS else f"≤ {100 * value:g}%"
        parts.append(element("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y, y2=y, class_="grid"))
        parts.append(element("text", words, x=_LEFT - 6, y=y, dy="0.35em", class_="end"))
    for value in x_axis.ticks():
        x = f"{x_axis.place(value):.1f}"
        parts.append(element("line", x1=x, x2=x, y1=_TOP, y2=_HEIGHT - _BOTTOM, class_="grid"))
        parts.append(element("text", tick(value), x=x, y=_HEIGHT - _BOTTOM + 18, class_="middle"))
    return joined(*parts)


def _line(
    points: Sequence[Point],
    is_measured: bool,
    across: Callable[[Point], float],
    x_axis: Axis,
    y_axis: Axis,
) -> Markup:
    """The frontiers of one kind, each source's joined by a line of its own."""
    sources = dict.fromkeys(point.source for point in points if point.is_measured == is_measured)
    lines = []
    for source in sources:
        chosen = [one for one in points if one.source == source and one.on_frontier]
        places = [
            f"{x_axis.place(across(one)):.1f},{y_axis.place(max(one.loss, _LEAST_LOSS)):.1f}"
            for one in sorted(chosen, key=across)
        ]
        kind = "measured" if is_measured else "predicted"
        lines.append(element("polyline", points=" ".join(places), class_=f"{kind} line"))
    return joined(*lines)


def _dot(point: Point, x: float, y_axis: Axis) -> Markup:
    """A filled circle for what was measured, an empty square for what is predicted."""
    y = y_axis.place(max(point.loss, _LEAST_LOSS))
    kind = "measured" if point.is_measured else "predicted"
    about = element("title", f"{point.name}: {point.loss:+.2%}, {kind} ({point.source})")
    if point.is_measured:
        size = 5 if point.on_frontier else 3
        name = f"{kind} dot" if point.on_frontier else f"{kind} dot beaten"
        return element("circle", about, cx=f"{x:.1f}", cy=f"{y:.1f}", r=size, class_=name)
    corner = {"x": f"{x - 4:.1f}", "y": f"{y - 4:.1f}"}
    return element("rect", about, **corner, width=8, height=8, class_=f"{kind} dot")
