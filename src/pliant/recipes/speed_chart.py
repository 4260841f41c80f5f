"""The bar chart of `pliant bench`: measured token/s, with the bound of the read bandwidth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pliant.errors import UnsupportedError, UsageError
from pliant.measurement import Measurement
from pliant.recipes.bench import BenchReport, BenchResult, threads_text

_FORMATS = (".svg", ".png", ".pdf")


def require_chart(path: Path) -> None:
    """Raise before anything is measured where `draw_speeds` could not write `path`.

    `UsageError` for an ending that is no picture or a folder that is missing, `UnsupportedError`
    where matplotlib is not installed.
    """
    if path.suffix.lower() not in _FORMATS:
        raise UsageError(f"{path} cannot be drawn; end its name in {', '.join(_FORMATS)}.")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"{path.parent} is no folder; make it first.")
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise UnsupportedError(
            "A chart needs matplotlib, which is not installed here; "
            "install it with pip install 'pliant[plot]'."
        ) from error
    mpl.use("agg")


def draw_speeds(report: BenchReport, path: Path, title: str = "") -> None:
    """Write bars of decode and prefill per subnet; the same errors as `require_chart`."""
    require_chart(path)
    import matplotlib as mpl
    from matplotlib.figure import Figure

    # Equal figures give equal files.
    mpl.rcParams["svg.hashsalt"] = "pliant"
    addresses = list(dict.fromkeys(result.address for result in report.results))
    figure = Figure(figsize=(10, 1.6 + 0.34 * len(report.results)), layout="constrained")
    decode, prefill = figure.subplots(1, 2, sharey=True)
    for axes, kind in ((decode, "decode"), (prefill, "prefill")):
        _draw_bars(axes, report, addresses, kind)
        axes.set_xlabel(f"{kind}, token/s")
        axes.grid(axis="x", alpha=0.3)
    decode.set_yticks(range(len(addresses)), addresses)
    decode.invert_yaxis()
    handles, labels = decode.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8)
    figure.suptitle(title or report.machine, fontsize=10)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _draw_bars(axes: Any, report: BenchReport, addresses: list[str], kind: str) -> None:
    """A bar for each number of threads at the place of each subnet, spread as whiskers."""
    counts = [probe.threads for probe in report.probes]
    height = 0.8 / len(counts)
    for number, threads in enumerate(counts):
        results = {item.address: item for item in report.results if item.threads == threads}
        places = [index + (number + 0.5) * height - 0.4 for index in range(len(addresses))]
        measured: list[Measurement] = [
            getattr(results[address].speed, kind) for address in addresses
        ]
        axes.barh(
            places,
            [item.median for item in measured],
            height * 0.9,
            xerr=[
                [item.median - item.low for item in measured],
                [item.high - item.median for item in measured],
            ],
            color=f"C{number}",
            error_kw={"elinewidth": 1, "alpha": 0.6},
            label=threads_text(threads),
        )
        if kind == "decode":
            label = "all of the read bandwidth" if number == len(counts) - 1 else None
            for index, (place, address) in enumerate(zip(places, addresses, strict=True)):
                _draw_bound(axes, place, height, results[address], label if index == 0 else None)


def _draw_bound(
    axes: Any, place: float, height: float, result: BenchResult, label: str | None
) -> None:
    """A line where decoding would read at the probed rate."""
    bound = result.speed.decode.median / result.share
    edges = (place - height * 0.45, place + height * 0.45)
    axes.plot((bound, bound), edges, color="black", linewidth=1.5, label=label)
