"""Tables of `benchmarks/shapes.py` for `benchmarks/tables.py`."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from shapes_runs import ALONE, LONG, METHODS, ROWS

Losses = dict[str, list[float]]
Table = dict[str, Any]
#: Joint beside single, and what is equal.
COMPARISONS = (
    ("steps of the optimizer: 100", "joint, frozen teacher", "single, dense teacher"),
    ("steps of the optimizer: 100", "joint, SMoL, anchored", "single, dense teacher"),
    ("steps of the optimizer: 288", LONG, "single, as many steps as 50 visits"),
    ("steps per shape: 50", LONG, "single, 50 steps"),
    ("steps per shape: 50", "joint, frozen teacher, 50 visits", "single, 50 steps"),
    ("steps per shape: 100", "joint, SMoL, anchored, 100 visits", "single, dense teacher"),
    ("total compute, 100 steps", "joint", "share of joint"),
    ("total compute, 50 visits", LONG, "share of 50 visits"),
)
_METHOD_ROWS = tuple(set(METHODS.values()) - {"joint, SMoL, anchored"})


def rows_table(results: dict[str, Any]) -> Table:
    """Rows against the dense shape, all other shapes, and the shapes that are tuned alone too."""
    grid = results["untuned"]["grid"]
    rows: dict[str, Losses] = {"untuned": {name: [loss] for name, loss in grid.items()}}
    arithmetic: dict[str, list[float]] = {"untuned": [0.0]}
    steps: dict[str, list[int]] = {"untuned": [0]}
    for run in results["runs"].values():
        row = run["row"]
        if row in _METHOD_ROWS or row == "finer":
            continue
        arithmetic.setdefault(row, []).append(run["arithmetic"])
        steps.setdefault(row, []).append(run["steps"])
        for name, loss in run["bits_per_byte"].items():
            rows.setdefault(row, {}).setdefault(name, []).append(loss)
    full, *others = grid
    lines = []
    for row in (name for name in ("untuned", *ROWS) if name in rows):
        losses = rows[row]
        alone = row.startswith(("single", "share"))
        each = statistics.mean(arithmetic[row]) * (len(grid) if alone else 1)
        taken = (
            f"{min(steps[row])}–{max(steps[row])}" if len(set(steps[row])) > 1 else steps[row][0]
        )
        lines.append(
            [
                row,
                str(taken or ""),
                str(max(map(len, losses.values()))),
                _cell(losses, [full]),
                _cell(losses, others),
                *(_cell(losses, [name]) for name in ALONE),
                f"{each:.1f}" if each else "",
            ]
        )
    caption = (
        f"{_conditions(results)} Arithmetic is what covering all {len(grid)} shapes costs in this "
        "way, in units of tuning the dense shape alone for 100 steps."
    )
    columns = [
        "row", "steps", "seeds", "dense shape", f"mean of {len(others)} cuts", *ALONE, "arithmetic",
    ]  # fmt: skip
    return {"columns": columns, "align": "l" + "r" * 9, "rows": lines, "caption": caption}


def gaps_table(results: dict[str, Any]) -> Table:
    """How far joint is behind single (or ahead, below 0), by what both have equal."""
    lines = []
    for equal, joint, single in COMPARISONS:
        gaps: Losses = {}
        for run in results["runs"].values():
            other = results["runs"].get(f"{joint}/{run['seed']}")
            if run["row"] == single and other is not None:
                (name, loss), = run["bits_per_byte"].items()  # fmt: skip
                gap = 100 * (other["bits_per_byte"][name] / loss - 1)
                gaps.setdefault(name, []).append(gap)
        if all(name in gaps for name in ALONE):
            cells = [_cell(gaps, [name], 1, "+") for name in ALONE]
            seeds = str(min(map(len, gaps.values())))
            lines.append([equal, joint, single, seeds, _cell(gaps, list(ALONE), 1, "+"), *cells])
    columns = ["equal", "joint", "single", "seeds", "mean, %", *ALONE]
    caption = (
        "Bits per byte of the joint run over those of single runs, less 1, in per cent; mean ± "
        "standard error over seeds. Above 0 the shape tuned alone is better."
    )
    return {"columns": columns, "align": "lll" + "r" * 6, "rows": lines, "caption": caption}


def methods_table(results: dict[str, Any]) -> Table:
    """Methods of choosing blocks and channels, before and after the same tuning."""
    lines = []
    for (axis, method), row in METHODS.items():
        tuned: Losses = {}
        for run in results["runs"].values():
            if run["row"] == row:
                for name, loss in run["bits_per_byte"].items():
                    tuned.setdefault(name, []).append(loss)
        untuned = results["untuned"][axis][method]
        sizes = [
            size for size in untuned if size not in ("1", "5") or (axis, size) == ("depth", "1")
        ]
        names = [f"d{size}-w1" if axis == "depth" else f"d5-w{size}" for size in sizes]
        if not tuned:
            continue
        cuts = [name for name in tuned if name != "d5-w1"]
        lines.append(
            [
                axis, method,
                f"{statistics.mean(untuned[size] for size in sizes):.3f}",
                _cell(tuned, names),
                *(_cell(tuned, [name]) for name in names),
                _cell(tuned, cuts),
            ]
        )  # fmt: skip
    steps = next(
        (
            run["steps"]
            for run in results["runs"].values()
            if run["row"] == METHODS["width", "flap"]
        ),
        0,
    )
    caption = (
        f"{_conditions(results)} Every method's shapes were tuned together by the same recipe "
        f"(`joint, SMoL, anchored`, {steps} steps). Cuts of the axis are depths 4, 3, 2, 1 at full "
        "width, or widths 0.75, 0.5, 0.375, 0.25 at full depth, in this order. Methods that choose "
        "the same blocks are one run."
    )
    columns = ["axis", "method", "untuned mean", "tuned mean", "1st", "2nd", "3rd", "4th",
               "all 24 cuts tuned"]  # fmt: skip
    return {"columns": columns, "align": "ll" + "r" * 7, "rows": lines, "caption": caption}


def finer_table(results: dict[str, Any]) -> Table:
    """Finer shapes where tuning saw whole blocks alone, and where it sampled finer ones too."""
    columns = ["tuning samples", "seeds", "mean of halves", "mean of ranked widths",
               "mean of 24 whole cuts"]  # fmt: skip
    lines = []
    for row, label in ((None, "untuned"), ("joint, SMoL, anchored", "whole blocks alone"),
                       ("finer", "finer shapes too")):  # fmt: skip
        losses: Losses = {}
        if row is None:
            found = [{**results["untuned"].get("finer", {}), **results["untuned"]["grid"]}]
        else:
            runs = [run for run in results["runs"].values() if run["row"] == row]
            found = [{**run["finer"], **run["bits_per_byte"]} for run in runs if "finer" in run]
        for one in found:
            for name, loss in one.items():
                losses.setdefault(name, []).append(loss)
        halves = [name for name in losses if name.startswith("h")]
        ranked = [name for name in losses if "-g" in name]
        cuts = [name for name in results["untuned"]["grid"] if name != "d5-w1"]
        if halves:
            seeds = str(len(losses[halves[0]]))
            lines.append([label, seeds, *(_cell(losses, part) for part in (halves, ranked, cuts))])
    caption = (
        f"{_conditions(results)} 100 steps; halves: 9 down to 2 of 10 kept, at full width; ranked "
        "widths: all blocks at 0.75, 0.5, 0.375 and 0.25 of the weights."
    )
    return {"columns": columns, "align": "lrrrr", "rows": lines, "caption": caption}


def _conditions(results: dict[str, Any]) -> str:
    conditions = results["conditions"]
    return (
        f"Bits per byte of held-out text ({conditions['heldout_tokens']:,} tokens, never seen in "
        f"calibration or tuning), mean ± standard error over seeds; {conditions['model']}, "
        f"{conditions['batch_tokens']:,} tokens per step."
    )


def _cell(losses: Losses, names: Sequence[str], digits: int = 3, sign: str = "") -> str:
    """Mean over shapes, then mean and standard error over seeds; empty where not measured."""
    if not names or any(name not in losses for name in names):
        return ""
    seeds = min(len(losses[name]) for name in names)
    means = [statistics.mean(losses[name][seed] for name in names) for seed in range(seeds)]
    error = f" ± {statistics.stdev(means) / math.sqrt(seeds):.{digits}f}" if seeds > 1 else ""
    return f"{statistics.mean(means):{sign}.{digits}f}{error}"
