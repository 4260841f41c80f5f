"""What the engine is to reach beside its peers, and whether a run of `vs_peers.py` shows it.

The goals were set for a machine of two cores with AVX-512 VNNI; elsewhere they are a measure, not a
verdict. What was not measured is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from vs_peers_table import Line, best_prefill, others, planes_of, ratio

#: Least decoding speed over that of a file type of llama.cpp: model, planes, type, factor.
DECODE = (
    ("Llama-3.2-1B", 4, "Q4_0", 1.9), ("Llama-3.2-1B", 3, "Q3_K_M", 2.4),
    ("Llama-3.2-1B", 2, "Q2_K", 2.9), ("Llama-3.2-1B", 2, "TQ2_0", 2.1),
    ("Qwen2.5-0.5B", 4, "Q4_0", 2.2), ("Qwen2.5-0.5B", 2, "TQ2_0", 3.0),
    ("TinyLlama-1.1B", 4, "Q4_0", 1.9), ("TinyLlama-1.1B", 2, "TQ2_0", 2.2),
    ("15M", 4, "Q4_0", 3.0),
)  # fmt: skip
#: Least share of the read rate: model, planes, share.
SHARE = (
    ("Llama-3.2-1B", 4, 0.85), ("Llama-3.2-1B", 3, 0.85), ("Llama-3.2-1B", 2, 0.85),
    ("Qwen2.5-0.5B", 4, 0.8), ("Qwen2.5-0.5B", 2, 0.8), ("TinyLlama-1.1B", 4, 0.85),
    ("TinyLlama-1.1B", 2, 0.85),
)  # fmt: skip
#: Least share of the peak of byte products in prefill, with any planes.
PEAK = (("Llama-3.2-1B", 0.55),)
#: Least prefill over the best of a peer: model, peer, factor.
PREFILL = (("Llama-3.2-1B", "llama.cpp", 2.2), ("Llama-3.2-1B", "torch fp32", 1.0))


def judged(models: dict[str, Any]) -> list[dict[str, Any]]:
    """Every goal that the results can speak of: what it is, what was measured, whether it is met.

    With several thread counts the largest is judged.
    """
    return [
        {"goal": goal, "least": least, "measured": measured, "met": measured >= least}
        for goal, least, measured in (*_decode(models), *_shares(models), *_peaks(models),
                                      *_prefill(models), *_bits(models))
    ]  # fmt: skip


def _lines(models: dict[str, Any], name: str) -> list[Line]:
    """The lines of a model with the most threads."""
    lines: list[Line] = models[name]["lines"] if name in models else []
    most = max((line["threads"] for line in lines), default=0)
    return [line for line in lines if line["threads"] == most]


def _ours(lines: list[Line], planes: int) -> list[Line]:
    return [line for line in lines if planes_of(line) == planes]


def _decode(models: dict[str, Any]) -> Iterator[tuple[str, float, float]]:
    for name, planes, kind, least in DECODE:
        lines = _lines(models, name)
        for line in _ours(lines, planes):
            for other in others(line, lines):
                if other["runner"] == f"llama.cpp {kind}":
                    times = ratio(line["decode_samples"], other["decode_samples"])
                    yield f"{name}, {planes} planes: decode ÷ {kind}", least, times


def _shares(models: dict[str, Any]) -> Iterator[tuple[str, float, float]]:
    for name, planes, least in SHARE:
        for line in _ours(_lines(models, name), planes):
            yield f"{name}, {planes} planes: share of the read rate", least, line["share"]


def _peaks(models: dict[str, Any]) -> Iterator[tuple[str, float, float]]:
    for name, least in PEAK:
        for line in _lines(models, name):
            planes, share = planes_of(line), line.get("int8_share")
            if planes is not None and share is not None:
                yield f"{name}, {planes} planes: prefill's share of the int8 peak", least, share


def _prefill(models: dict[str, Any]) -> Iterator[tuple[str, float, float]]:
    for name, peer, least in PREFILL:
        lines = _lines(models, name)
        for line in lines:
            planes = planes_of(line)
            best = best_prefill(line, [other for other in lines if peer in other["runner"]])
            if planes is not None and best is not None:
                times = ratio(line["prefill_samples"], best["prefill_samples"])
                yield f"{name}, {planes} planes: prefill ÷ {best['runner']}", least, times


def _bits(models: dict[str, Any]) -> Iterator[tuple[str, float, float]]:
    """Every plane less must make decoding faster."""
    for name in models:
        ours = sorted(
            (line for line in _lines(models, name) if planes_of(line) is not None),
            key=lambda line: -(planes_of(line) or 0),
        )
        for more, fewer in pairwise(ours):
            times = ratio(fewer["decode_samples"], more["decode_samples"])
            yield f"{name}: decode of {planes_of(fewer)} ÷ {planes_of(more)} planes", 1.0, times
