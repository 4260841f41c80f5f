"""What `bits.py` has measured, as tables and a picture."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bits_mixed import TARGETS

#: Widths that the best of each family within them are compared at.
WIDTHS = (2.07, 2.31, 2.57, 2.63, 3.07, 3.31, 3.44, 3.6, 4.25, 4.32, 4.5, 5.34, 5.5)
#: Methods by family; what begins with none of these is a type of llama.cpp.
_FAMILIES = {"pliant": ("pliant",), "GPTQ": ("gptq",), "RTN, AWQ, HQQ": ("rtn", "awq", "hqq")}

Point = dict[str, Any]


def summarized(rows: list[dict[str, Any]]) -> list[Point]:
    """Mean over seeds, and half the range, of each model, method and width."""
    points: dict[tuple[str, str, float], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        points[row["model"], row["method"], _width(row)].append(row)
    return [
        {"model": model, "method": method, "seeds": len(found),
         **{key: statistics.fmean(row[key] for row in found)
            for key in ("bits", "dense", "increase", "kl")},
         "spread": (max(r["increase"] for r in found) - min(r["increase"] for r in found)) / 2}
        for (model, method, _), found in points.items()
    ]  # fmt: skip


def _width(row: Mapping[str, Any]) -> float:
    """What seeds have in common: bits, or what mixed bits were chosen for, which they fill."""
    bits: float = row["bits"]
    if row["method"].endswith("mixed"):
        return min((target for target in TARGETS if target >= bits), default=bits)
    return round(bits, 3)


def table(summary: list[Point]) -> dict[str, Any]:
    """Loss relative to dense; methods as rows, in order of their bits."""
    rows = [
        [point["model"], point["method"], f"{point['bits']:.2f}",
         f"{point['increase'] / point['dense']:+.1%}",
         f"{point['spread'] / point['dense']:.1%}" if point["seeds"] > 1 else "one seed",
         f"{point['kl']:.4f}"]
        for point in sorted(summary, key=lambda p: (p["model"], p["bits"], p["increase"]))
        if point["bits"] < 5
    ]  # fmt: skip
    columns = ["model", "method", "effective bits", "loss", "± seeds", "KL, nats"]
    return {"columns": columns, "align": "llrrrr", "rows": rows}


def widths_table(summary: list[Point]) -> dict[str, Any]:
    """The best of each family within some widths, and how far ours is ahead of the best peer."""
    families = [*_FAMILIES, "llama.cpp"]
    rows = []
    for model in dict.fromkeys(point["model"] for point in summary):
        for width in WIDTHS:
            best = {}
            for family in families:
                within = [
                    point
                    for point in summary
                    if (point["model"], family_of(point)) == (model, family)
                    and point["bits"] < width + 0.005
                ]
                if within:
                    best[family] = min(within, key=lambda point: point["increase"])
            ours = best.get("pliant")
            peers = [best[family] for family in families[1:] if family in best]
            gain = ""
            if ours and peers:
                least = min(point["increase"] for point in peers)
                gain = f"{1 - ours['increase'] / least:+.0%}"
            cells = [_cell(best[family]) if family in best else "" for family in families]
            rows.append([model, f"{width:g}", *cells, gain])
    columns = ["model", "bits, at most", *families, "less loss than the best peer"]
    return {"columns": columns, "align": "lr" + "l" * len(families) + "r", "rows": rows}


def family_of(point: Mapping[str, Any]) -> str:
    """The family of a method."""
    for family, starts in _FAMILIES.items():
        if point["method"].startswith(starts):
            return family
    return "llama.cpp"


def _cell(point: Point) -> str:
    name = point["method"].removeprefix("pliant ")
    return f"{point['increase'] / point['dense']:+.1%} {name}, {point['bits']:.2f}"


def draw(summary: list[Point], path: Path) -> None:
    """KL against effective bits, a panel for each model; llama.cpp's types as named points."""
    import matplotlib.pyplot as plt

    models = list(dict.fromkeys(point["model"] for point in summary))
    figure, axes = plt.subplots(1, len(models), figsize=(5.5 * len(models), 4.5), squeeze=False)
    for model, axis in zip(models, axes[0], strict=True):
        lines: Mapping[str, list[tuple[float, float]]] = defaultdict(list)
        for point in summary:
            if point["model"] != model or not 1.9 < point["bits"] < 6:
                continue
            if family_of(point) != "llama.cpp":
                lines[point["method"]].append((point["bits"], point["kl"]))
            elif point["kl"] < 4:
                name = point["method"].removesuffix(" alone")
                axis.plot(point["bits"], point["kl"], "kx", markersize=4)
                axis.annotate(name, (point["bits"], point["kl"]), fontsize=5.5, xytext=(2, 2),
                              textcoords="offset points")  # fmt: skip
        for method, values in lines.items():
            is_ours = method.startswith("pliant")
            axis.plot(*zip(*sorted(values), strict=True), label=method, marker="o", markersize=3,
                      linewidth=2.2 if is_ours else 0.9)  # fmt: skip
        axis.set(title=model, xlabel="effective bits of block matrices", yscale="log",
                 ylabel="KL to dense, nats")  # fmt: skip
        axis.legend(fontsize=7)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
