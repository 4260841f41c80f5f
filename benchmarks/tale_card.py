"""Writes the demo model's card and loss curve: `python benchmarks/tale_card.py`.

Reads `training_log.jsonl` beside the model and `benchmarks/results/tale.json`; no figure of the
card is typed by hand.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
#: Size of the picture and of its margins: left, top, right, bottom; pixels.
WIDTH, HEIGHT, MARGINS = 640, 320, (56, 20, 16, 44)
TEMPLATE = Path(__file__).with_name("tale_card.md")
CURVE_FILE = "training_curve.svg"
#: Rows of the card's loss table.
TABLE_ROWS = 10
#: Stands for figures of the 5-gram where `tale.py --skip-ngram` wrote the results.
NOT_MEASURED = "not measured"
#: Tokens of the two training texts, and the first one's share of each batch.
CHILDREN_TOKENS, BOOKS_TOKENS, CHILDREN_SHARE = 8_944_256, 48_708_582, 0.59

Record = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=ROOT / "models/tale-750k")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks/results/tale.json")
    options = parser.parse_args()
    log = [json.loads(x) for x in (options.model / "training_log.jsonl").read_text().splitlines()]
    results = json.loads(options.results.read_text())
    template = TEMPLATE.read_text()
    (options.model / CURVE_FILE).write_text(curve(log))
    (options.model / "README.md").write_text(card(template, log, results))
    print(options.model / "README.md")
    return 0


def card(template: str, log: list[Record], results: Record) -> str:
    """The card: the template's `{{name}}` places filled with figures and tables."""
    model, ngram = results["model"], results.get("ngram")
    places = {
        "name": model["name"],
        "parameters": f"{model['parameters']:,}",
        "tokens": f"{log[-1]['tokens'] / 1e6:.1f} M",
        "tokens_per_parameter": f"{log[-1]['tokens'] / model['parameters']:.0f}",
        "minutes": f"{log[-1]['seconds'] / 60:.0f}",
        "window": str(results["conditions"]["window"]),
        "stride": str(results["conditions"]["stride"]),
        "context": str(results["conditions"]["window"]),
        "context_left": str(results["conditions"]["window"] - results["conditions"]["stride"]),
        "children_epochs": f"{log[-1]['tokens'] * CHILDREN_SHARE / CHILDREN_TOKENS:.1f}",
        "books_epochs": f"{log[-1]['tokens'] * (1 - CHILDREN_SHARE) / BOOKS_TOKENS:.1f}",
        "curve": CURVE_FILE,
        "loss_table": loss_table(log),
        "heldout_table": heldout_table(results),
        "blimp": f"{results['blimp']['mean']:.1%}",
        "pairs": f"{results['blimp']['pairs']:,}",
        "blimp_ngram": f"{ngram['blimp']['mean']:.1%}" if ngram else NOT_MEASURED,
        "ngrams": f"{ngram['ngrams'] / 1e6:.1f} M" if ngram else NOT_MEASURED,
    }
    for name, value in places.items():
        template = template.replace("{{" + name + "}}", value)
    if "{{" in template:
        raise ValueError(f"the template asks for {template.split('{{')[1].split('}}')[0]}")
    return template


def loss_table(log: list[Record]) -> str:
    """A Markdown table of evenly spaced held-out measurements, the last one included."""
    measured = [record for record in log if "heldout_bits_per_byte" in record]
    step = (len(measured) - 1) / (TABLE_ROWS - 1) if len(measured) > TABLE_ROWS else 1
    count = min(TABLE_ROWS, len(measured))
    rows = [measured[round(index * step)] for index in range(count)]
    lines = ["| tokens | train, nats per token | held out, bits per byte |", "|---:|---:|---:|"]
    lines += [
        f"| {row['tokens'] / 1e6:.1f} M | {row['train_nats_per_token']:.3f} "
        f"| {row['heldout_bits_per_byte']:.3f} |"
        for row in rows
    ]
    return "\n".join(lines)


def heldout_table(results: Record) -> str:
    """A Markdown table of bits per byte on every held-out text, the model beside the 5-gram."""
    lines = ["| text | bytes | model | 5-gram |", "|---|---:|---:|---:|"]
    for name, ours in results["heldout"].items():
        ngram = results.get("ngram")
        theirs = f"{ngram['heldout'][name]['bits_per_byte']:.3f}" if ngram else NOT_MEASURED
        lines.append(f"| `{name}` | {ours['bytes']:,} | {ours['bits_per_byte']:.3f} | {theirs} |")
    return "\n".join(lines)


@dataclass(frozen=True)
class Frame:
    """The rectangle that curves are drawn in, and the values at its edges."""

    right: float
    low: float
    high: float

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Column and row, in pixels, of a point in units of the axes."""
        left, top, margin_right, bottom = MARGINS
        column = left + (WIDTH - left - margin_right) * x / self.right
        row = top + (HEIGHT - top - bottom) * (self.high - y) / (self.high - self.low)
        return column, row

    def line(self, points: list[tuple[float, float]], style: str) -> str:
        """A polyline through points in units of the axes."""
        pixels = " ".join(f"{x:.1f},{y:.1f}" for x, y in (self.place(*point) for point in points))
        return f'<polyline points="{pixels}" fill="none" {style}/>'

    def text(self, at: tuple[float, float], text: str, style: str = "") -> str:
        """Text at a point in units of the axes; `style` may move and colour it."""
        x, y = self.place(*at)
        return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{text}</text>'


def curve(log: list[Record]) -> str:
    """An SVG of training loss (nats per token) and held-out loss (bits per byte) over tokens."""
    # The first steps fall so far that nothing else could be seen beside them.
    shown = [record for record in log if record["tokens"] > 1.5e6]
    train = [(record["tokens"] / 1e6, record["train_nats_per_token"]) for record in shown]
    measured = [record for record in shown if "heldout_bits_per_byte" in record]
    heldout = [(record["tokens"] / 1e6, record["heldout_bits_per_byte"]) for record in measured]
    low = math.floor(10 * min(y for _, y in heldout)) / 10
    frame = Frame(train[-1][0], low, math.ceil(10 * max(y for _, y in train)) / 10)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
            'font-family="sans-serif" font-size="12" fill="#333">',
            f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
            *_axes(frame),
            *_labelled(frame, train, "#2563eb", "training text, nats per token"),
            *_labelled(frame, heldout, "#c2410c", "held-out tales, bits per byte"),
            "</svg>\n",
        ]
    )


def _axes(frame: Frame) -> list[str]:
    parts = []
    for tick in (half / 2 for half in range(math.ceil(2 * frame.low), int(2 * frame.high) + 1)):
        parts.append(frame.line([(0, tick), (frame.right, tick)], 'stroke="#ddd"'))
        parts.append(frame.text((0, tick), f"{tick:.1f}", 'text-anchor="end" dx="-8" dy="4"'))
    below = 'text-anchor="middle" dy="18"'
    parts += [frame.text((x, frame.low), str(x), below) for x in range(0, int(frame.right) + 1, 10)]
    title = 'text-anchor="middle" dy="36"'
    return [*parts, frame.text((frame.right / 2, frame.low), "million tokens", title)]


def _labelled(
    frame: Frame, points: list[tuple[float, float]], colour: str, label: str
) -> list[str]:
    style = f'text-anchor="end" dy="-10" fill="{colour}" stroke="none"'
    return [
        frame.line(points, f'stroke="{colour}" stroke-width="2"'),
        frame.text(points[-1], label, style),
    ]


if __name__ == "__main__":
    sys.exit(main())
