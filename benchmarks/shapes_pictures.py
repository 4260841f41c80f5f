"""Pictures of `benchmarks/shapes.py`: loss against depth and width, the grid before and after."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from shapes_runs import LONG, METHODS

Losses = dict[str, float]


def draw(results: dict[str, Any], folder: Path) -> None:
    """Write `shapes_methods.svg` and, once a long joint run is measured, `shapes_grid.svg`."""
    import matplotlib as mpl

    mpl.use("svg")
    # Equal figures give equal files.
    mpl.rcParams["svg.hashsalt"] = "pliant"
    folder.mkdir(parents=True, exist_ok=True)
    tuned = {
        axis: {
            method: mean_losses(results, row)
            for (kind, method), row in METHODS.items()
            if kind == axis and mean_losses(results, row)
        }
        for axis in ("depth", "width")
    }
    _methods(results["untuned"], tuned, folder / "shapes_methods.svg")
    after = mean_losses(results, LONG)
    if after:
        steps = next(run["steps"] for run in results["runs"].values() if run["row"] == LONG)
        title = f"tuned once for all, {steps} steps"
        _grids(results["untuned"]["grid"], after, title, folder / "shapes_grid.svg")


def mean_losses(results: dict[str, Any], row: str) -> Losses:
    """Mean over seeds of every shape's loss in a row; empty where it was not run."""
    runs = [run["bits_per_byte"] for run in results["runs"].values() if run["row"] == row]
    return {name: statistics.mean(run[name] for run in runs) for name in runs[0]} if runs else {}


def _methods(untuned: dict[str, Any], tuned: dict[str, dict[str, Losses]], path: Path) -> None:
    """Loss against kept blocks and against width, each method before and after one tuning."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4.6), sharey=True)
    deepest = max(map(int, untuned["depth"]["amoeba"]))
    for place, (kind, label) in enumerate((("depth", "kept blocks"), ("width", "width ratio"))):
        for number, (method, losses) in enumerate(untuned[kind].items()):
            # Methods that choose the same lie on each other: the first is the widest.
            style = {"color": f"C{number}", "linewidth": 3 - 0.45 * number, "markersize": 5}
            sizes = [float(size) for size in losses]
            axes[place].plot(sizes, list(losses.values()), ".:", label=method, **style)
            after = tuned[kind].get(method)
            if after:
                name = "d{size}-w1" if kind == "depth" else f"d{deepest}-w{{size}}"
                values = [after[name.format(size=size)] for size in losses]
                axes[place].plot(sizes, values, ".-", **style)
        axes[place].set_xlabel(label)
        axes[place].grid(alpha=0.3)
        axes[place].legend(fontsize=8, title="dotted: untuned, solid: tuned", title_fontsize=8)
    axes[0].set_ylabel("bits per byte, held out")
    axes[0].set_title("depth, at full width")
    axes[1].set_title("width, at full depth")
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)


def _grids(before: Losses, after: Losses, title: str, path: Path) -> None:
    import matplotlib.pyplot as plt

    depths = sorted({int(name[1:].split("-")[0]) for name in before}, reverse=True)
    widths = sorted({float(name.split("-w")[1]) for name in before}, reverse=True)
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6))
    low, high = min(after.values()), max(before.values())
    for axis, losses, kind in zip(axes, (before, after), ("untuned", title), strict=True):
        grid = [[losses[f"d{depth}-w{width:g}"] for width in widths] for depth in depths]
        axis.imshow(grid, vmin=low, vmax=high, cmap="viridis_r", aspect="auto")
        for row, line in enumerate(grid):
            for column, loss in enumerate(line):
                dark = loss > (low + high) / 2
                axis.text(
                    column, row, f"{loss:.2f}", ha="center", va="center", fontsize=8,
                    color="white" if dark else "black",
                )  # fmt: skip
        axis.set_xticks(range(len(widths)), [f"{width:g}" for width in widths])
        axis.set_yticks(range(len(depths)), [str(depth) for depth in depths])
        axis.set_xlabel("width ratio")
        axis.set_ylabel("kept blocks")
        axis.set_title(f"bits per byte, {kind}")
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
