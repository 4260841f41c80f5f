"""Pictures of `benchmarks/shapes.py`: loss against depth and width, the grid before and after."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any


def draw(results: dict[str, Any], folder: Path) -> None:
    """Write `shapes_methods.svg` and, once a joint run is measured, `shapes_grid.svg`."""
    import matplotlib as mpl

    mpl.use("svg")
    # Equal figures give equal files.
    mpl.rcParams["svg.hashsalt"] = "pliant"
    folder.mkdir(parents=True, exist_ok=True)
    joint = [run["bits_per_byte"] for run in results["runs"].values() if run["row"] == "joint"]
    after = (
        {name: statistics.mean(run[name] for run in joint) for name in joint[0]} if joint else {}
    )
    _methods(results["untuned"], after, folder / "shapes_methods.svg")
    if after:
        _grids(results["untuned"]["grid"], after, folder / "shapes_grid.svg")


def _methods(untuned: dict[str, Any], after: dict[str, float], path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), sharey=True)
    for place, (kind, label) in enumerate((("depth", "kept blocks"), ("width", "width ratio"))):
        for method, losses in untuned[kind].items():
            sizes = [float(size) for size in losses]
            axes[place].plot(sizes, list(losses.values()), ".-", label=method)
        axes[place].set_xlabel(label)
        axes[place].grid(alpha=0.3)
    deepest = max(map(float, untuned["depth"]["amoeba"]))
    tuned = {name: loss for name, loss in after.items() if name.endswith("-w1")}
    if tuned:
        depths = [float(name[1:].split("-")[0]) for name in tuned]
        axes[0].plot(depths, list(tuned.values()), "k--", label="amoeba, tuned for all")
        full = f"d{deepest:g}-w"
        wide = {name[len(full) :]: loss for name, loss in after.items() if name.startswith(full)}
        axes[1].plot(
            list(map(float, wide)), list(wide.values()), "k--", label="flap, tuned for all"
        )
    for axis in axes:
        axis.legend(fontsize=8)
    axes[0].set_ylabel("bits per byte, held out")
    axes[0].set_title("depth, at full width")
    axes[1].set_title("width, at full depth")
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)


def _grids(before: dict[str, float], after: dict[str, float], path: Path) -> None:
    import matplotlib.pyplot as plt

    depths = sorted({int(name[1:].split("-")[0]) for name in before}, reverse=True)
    widths = sorted({float(name.split("-w")[1]) for name in before}, reverse=True)
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6))
    low, high = min(after.values()), max(before.values())
    for axis, losses, title in zip(
        axes, (before, after), ("untuned", "tuned once for all"), strict=True
    ):
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
        axis.set_title(f"bits per byte, {title}")
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
