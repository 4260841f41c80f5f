"""The picture of `engine_scaling.py`: four questions, the measured times beside the roofline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

Lines = list[dict[str, Any]]


def draw(results: dict[str, Any], path: Path) -> None:
    """Write the picture as SVG; equal results give equal files."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "pliant"
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7.5), layout="constrained")
    (batch, tokens), (cuts, context) = figure.subplots(2, 2)
    answers = results["answers"]
    _per_token(batch, answers["batch"], "sequences", "sequences in a step")
    _per_token(tokens, answers["tokens"], "count", "tokens of one prompt in a step")
    _cuts(cuts, answers["cuts"])
    _context(context, answers["context"])
    figure.suptitle(
        f"{results['model']}, {results['planes']} planes, {results['threads']} threads; "
        f"{results['machine']}",
        fontsize=10,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


def _per_token(axes: Any, lines: Lines, key: str, label: str) -> None:
    """Milliseconds per token as more of them share a step."""
    counts = [line[key] for line in lines]
    measured = [1e3 * line["seconds"]["median"] / line[key] for line in lines]
    bound = [1e3 * line["bound_seconds"] / line[key] for line in lines]
    axes.plot(counts, measured, "o-", markersize=4, label="measured")
    axes.plot(counts, bound, "k--", linewidth=1, label="roofline")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xticks(ticks := [count for count in counts if count & (count - 1) == 0])
    axes.set_xticklabels([str(tick) for tick in ticks])
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel(label)
    axes.set_ylabel("ms per token")
    axes.grid(alpha=0.3)
    axes.legend()


def _cuts(axes: Any, lines: Lines) -> None:
    """Milliseconds of a token over the bytes it reads: all cuts should lie on one line."""
    for axis, marker in (("depth", "o"), ("width", "s"), ("planes", "^")):
        chosen = [line for line in lines if line["axis"] == axis]
        sizes = [line["bytes"] / 1e6 for line in chosen]
        times = [1e3 * line["seconds"]["median"] for line in chosen]
        axes.plot(sizes, times, marker + "-", markersize=5, linewidth=0.8, label=f"{axis} falls")
    largest = max(lines, key=lambda line: float(line["bytes"]))
    axes.plot((0, largest["bytes"] / 1e6), (0, 1e3 * largest["bound_seconds"]), "k--",
              linewidth=1, label="roofline")  # fmt: skip
    axes.set_xlabel("MB read for a token")
    axes.set_ylabel("ms per token")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()


def _context(axes: Any, lines: Lines) -> None:
    """Decoding and prefill as the context grows."""
    contexts = [line["context"] for line in lines]
    decode = [1 / line["seconds"]["median"] for line in lines]
    axes.plot(contexts, decode, "o-", markersize=4, label="decode")
    axes.plot(contexts, [1 / line["bound_seconds"] for line in lines], "k--", linewidth=1,
              label="roofline of decode")  # fmt: skip
    prefill = [line["prefill_tokens_per_second"] for line in lines]
    axes.plot(contexts, prefill, "s-", color="C1", markersize=4, label="prefill, 128 tokens")
    axes.set_xscale("symlog", base=2, linthresh=128)
    axes.set_xticks(contexts)
    axes.set_xticklabels([str(context) for context in contexts])
    axes.set_yscale("log")
    axes.set_xlabel("tokens of context")
    axes.set_ylabel("token/s")
    axes.grid(alpha=0.3)
    axes.legend()
