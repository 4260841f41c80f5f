"""The table of `vs_peers.py`: each runner's figures, and ours as multiples of its peers'."""

from __future__ import annotations

import re
import statistics
from typing import Any

from pliant.measurement import format_bytes

#: File types of llama.cpp that a number of planes stands beside: as many bits, or the next more.
PEER_TYPES = {8: ("Q8_0",), 4: ("Q4_0", "Q4_K_M"), 3: ("Q3_K_M",), 2: ("Q2_K", "TQ2_0"),
              1: ("TQ2_0",)}  # fmt: skip
Line = dict[str, Any]


def table(models: dict[str, Any]) -> dict[str, Any]:
    """Columns, rows and caption for `benchmarks/tables.py`."""
    columns = ["model", "runner", "threads", "weights read", "decode", "of read rate", "prefill",
               "of int8 peak", "decode ÷ peer", "prefill ÷ best peer"]  # fmt: skip
    rows = [
        [
            name,
            line["runner"],
            str(line["threads"]),
            format_bytes(line["weight_bytes"]),
            spread(line["decode"]),
            f"{line['share']:.0%}",
            spread(line["prefill"]) if line["prompt_tokens"] > 16 else "",
            int8_share(line),
            decode_ratios(line, model["lines"]),
            prefill_ratio(line, model["lines"]),
        ]
        for name, model in models.items()
        for line in model["lines"]
    ]
    return {"columns": columns, "align": "llrrrrrrll", "rows": rows, "caption": caption(models)}


def caption(models: dict[str, Any]) -> str:
    """What the figures hold for."""
    parts = []
    for name, model in models.items():
        probes = "; ".join(
            f"{probe['before']['median']:.1f} and {probe['after']['median']:.1f} GB/s with "
            f"{probe['threads']} threads"
            for probe in model["probes"]
        )
        line = model["lines"][0]
        parts.append(f"{name}: {line['prompt_tokens']} + {line['decode_tokens']} tokens, {probes}")
    known = next(iter(models.values()))["conditions"] if models else {}
    versions = known.get("versions", {})
    peers = ", ".join(
        f"{key} {versions[key]}"
        for key in ("llama-cpp-python", "torch", "transformers")
        if key in versions
    )
    return (
        "One sequence, greedy, random weights; token/s as median [lowest, highest] of "
        f"{known.get('repeats', '')} runs that took turns; ratios are medians of the ratios within "
        "a turn. The int8 peak is that of byte products alone, without the sums over them. "
        f"Read rate before and after: {'. '.join(parts)}. {known.get('machine', '')}, "
        f"kernels {known.get('kernels', '')}; {peers}."
    )


def spread(measured: dict[str, Any]) -> str:
    """Median and spread of a stored measurement."""
    digits = 1 if measured["median"] < 100 else 0
    low, middle, high = (f"{measured[key]:.{digits}f}" for key in ("low", "median", "high"))
    return f"{middle} [{low}, {high}]"


def int8_share(line: Line) -> str:
    """Prefill over the peak of byte products; nothing where either says nothing."""
    share = line.get("int8_share")
    return "" if share is None or line["prompt_tokens"] <= 16 else f"{share:.0%}"


def planes_of(line: Line) -> int | None:
    """Planes of one of our lines; None for a peer."""
    match = re.match(r"pliant b(\d)", line["runner"])
    return int(match[1]) if match else None


def ratio(ours: list[float], theirs: list[float]) -> float:
    """The median of the ratios within each round, so that a slow moment hits both sides."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def others(line: Line, lines: list[Line]) -> list[Line]:
    """The lines of peers with as many threads."""
    return [
        other for other in lines
        if planes_of(other) is None and other["threads"] == line["threads"]
    ]  # fmt: skip


def decode_ratios(line: Line, lines: list[Line]) -> str:
    """Our decoding as multiples of the peers of its kind."""
    planes = planes_of(line)
    if planes is None:
        return ""
    texts = []
    for other in others(line, lines):
        kind = other["runner"].removeprefix("llama.cpp ")
        if kind in PEER_TYPES.get(planes, ()):
            times = ratio(line["decode_samples"], other["decode_samples"])
            texts.append(f"{times:.2f} × {kind}")
    return ", ".join(texts)


def best_prefill(line: Line, lines: list[Line]) -> Line | None:
    """The peer with the fastest prefill of the same prompt."""
    rivals = [
        other for other in others(line, lines) if other["prompt_tokens"] == line["prompt_tokens"]
    ]
    return max(rivals, key=lambda other: float(other["prefill"]["median"]), default=None)


def prefill_ratio(line: Line, lines: list[Line]) -> str:
    """Our prefill as a multiple of the fastest of all peers on the same prompt."""
    best = best_prefill(line, lines)
    if planes_of(line) is None or best is None:
        return ""
    times = ratio(line["prefill_samples"], best["prefill_samples"])
    return f"{times:.2f} × {best['runner']}"


def brief(models: dict[str, Any]) -> dict[str, Any]:
    """The table of our lines alone, with 4, 3 and 2 planes, as a README can hold it."""
    columns = ["model", "planes", "decode, token/s", "of read rate", "decode ÷ llama.cpp",
               "prefill, token/s", "prefill ÷ best peer"]  # fmt: skip
    rows = [
        [
            name,
            str(planes_of(line)),
            spread(line["decode"]),
            f"{line['share']:.0%}",
            decode_ratios(line, model["lines"]),
            spread(line["prefill"]),
            prefill_ratio(line, model["lines"]),
        ]
        for name, model in models.items()
        for line in model["lines"]
        if planes_of(line) in (4, 3, 2)
    ]
    return {"columns": columns, "align": "lrrrlrl", "rows": rows, "caption": caption(models)}
