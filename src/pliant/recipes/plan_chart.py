"""The picture of a plan: each device's roofline with the model's operators, and its options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pliant.costs import Step, Widths, step_graph
from pliant.costs.planning import DevicePlan
from pliant.costs.timing import operator_times
from pliant.recipes.plan import Plan
from pliant.recipes.speed_chart import require_chart

#: Operations per byte on the axis of a roofline.
_INTENSITIES = (2.0**-4, 2.0**14)


def draw_plan(plan: Plan, path: Path) -> None:
    """Write rooflines (left) and speed over memory (right); errors as `require_chart`."""
    require_chart(path)
    import matplotlib as mpl
    from matplotlib.figure import Figure

    # Equal figures give equal files.
    mpl.rcParams["svg.hashsalt"] = "pliant"
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    roofline, options = figure.subplots(1, 2)
    for number, item in enumerate(plan.devices):
        _draw_roofline(roofline, plan, item, f"C{number % 10}")
        _draw_options(options, plan, item, f"C{number % 10}")
    roofline.set(xscale="log", yscale="log", xlabel="operations per byte of memory",
                 ylabel="operations/s", title="roofline; o decode, x prompt")  # fmt: skip
    options.set(xscale="log", yscale="log", xlabel="memory in all, bytes", ylabel="token/s",
                title="full shape by planes; bar: error, dash: bound, ring: chosen")  # fmt: skip
    for axes in (roofline, options):
        axes.grid(alpha=0.3)
    options.legend(fontsize=8)
    figure.suptitle(
        f"{plan.model.name}, {plan.request.context} tokens of context, "
        f"{plan.request.sequences} at once",
        fontsize=10,
    )
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _draw_roofline(axes: Any, plan: Plan, item: DevicePlan, color: str) -> None:
    device = item.device
    peak, bandwidth = device.rate("int8"), device.bandwidth.value
    points = (_INTENSITIES[0], peak / bandwidth, _INTENSITIES[1])
    axes.plot(points, [min(peak, bandwidth * at) for at in points], color=color, linewidth=1.5)
    choice = (item.chosen or item.nearest).choice
    widths = Widths.of_cache(choice.cache_bits)
    sequences = plan.request.sequences
    prompt = Step(tokens=min(128, plan.request.prompt), sequences=sequences)
    for step, marker in ((Step.decode(plan.request.context - 1, sequences), "o"), (prompt, "x")):
        graph = step_graph(choice.subnet, step, widths, plan.model.experts)
        lines = [
            line
            for line in operator_times(graph, step, device)
            if line.intensity > 0 and line.seconds > 0 and line.operations > 1000
        ]
        axes.scatter(
            [line.intensity for line in lines],
            [line.operations / line.seconds for line in lines],
            marker=marker, s=16, color=color, alpha=0.7,
        )  # fmt: skip


def _draw_options(axes: Any, plan: Plan, item: DevicePlan, color: str) -> None:
    spec = plan.model.spec
    full = sorted(
        (
            option
            for option in item.options
            if option.choice.depth == spec.num_blocks
            and option.choice.width == 1.0
            and option.choice.cache_bits == 16
        ),
        key=lambda option: option.total_bytes,
    )
    sizes = [option.total_bytes for option in full]
    speeds = [option.tokens_per_second for option in full]
    errors = [option.decode.error * option.tokens_per_second for option in full]
    axes.errorbar(sizes, speeds, errors, marker=".", color=color, label=item.device.name)
    bounds = [1 / option.decode.bound_seconds for option in full]
    axes.plot(sizes, bounds, "--", color=color, linewidth=1)
    if item.chosen is not None:
        axes.plot(item.chosen.total_bytes, item.chosen.tokens_per_second, "o", markersize=12,
                  fillstyle="none", color=color)  # fmt: skip
    axes.axvline(item.device.memory_bytes, color=color, linestyle=":", linewidth=1)
