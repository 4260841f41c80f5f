"""Cuts that were measured: receipts of the build, and studies that `pliant fit` kept."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace

from pliant.artifact import Artifact
from pliant.errors import PliantError
from pliant.receipt import Receipt
from pliant.recipes.report.names import CutNames
from pliant.recipes.report.point import Point
from pliant.recipes.study import kept_studies
from pliant.search import Study, frontier, spread
from pliant.subnet import Subnet

#: Points of one text that are kept; a picture of more shows no more.
_MOST_POINTS = 400


def measured_points(artifact: Artifact, names: CutNames) -> tuple[list[Point], list[str]]:
    """Measured cuts, the smallest first, and notes on what cannot be shown.

    Losses are relative to the full model on the same text; a text on which that was not measured
    says nothing that can be compared, and is left out.
    """
    studies, notes = kept_studies(artifact)
    groups: dict[str, list[Point]] = defaultdict(list)
    for source, found in _of_receipts(artifact, artifact.manifest.receipts):
        groups[source] += found
    for study in studies:
        points = _of_study(artifact, study, names)
        if points:
            groups[f"fit on text {study.text}"] += points
        else:
            notes.append(f"study {study.text}: the full model was not measured on its text")
    found = [point for points in groups.values() for point in _with_frontier(points)]
    return sorted(found, key=lambda point: point.weight_bytes), notes


def resolved(artifact: Artifact, address: str) -> Subnet | None:
    """The subnet that a receipt names; None where it names none."""
    try:
        return artifact.subnet("" if address == "full" else address)
    except PliantError:
        return None


def is_full(receipt: Receipt) -> bool:
    """Whether a receipt is of the full model."""
    return receipt.address in ("", "full")


def _of_receipts(
    artifact: Artifact, receipts: Iterable[Receipt]
) -> Iterable[tuple[str, list[Point]]]:
    groups: dict[tuple[str, int], list[Receipt]] = defaultdict(list)
    for receipt in receipts:
        if receipt.bits_per_byte > 0 and receipt.weight_bytes > 0:
            groups[receipt.conditions.text, receipt.conditions.tokens].append(receipt)
    for (text, tokens), group in groups.items():
        full = next((one.bits_per_byte for one in group if is_full(one)), None)
        if full is None:
            continue
        source = f"{text}, {tokens:,} tokens"
        yield source, [_of_receipt(artifact, one, full, source) for one in group]


def _of_receipt(artifact: Artifact, receipt: Receipt, full: float, source: str) -> Point:
    speed, conditions = receipt.speed, receipt.conditions
    fast = speed is not None and speed.unit == "token/s" and speed.median > 0
    machine = f"{conditions.machine}, {conditions.threads} threads"
    return Point(
        name=receipt.address or "full",
        weight_bytes=receipt.weight_bytes,
        loss=receipt.bits_per_byte / full - 1,
        is_measured=True,
        source=source,
        subnet=resolved(artifact, receipt.address),
        bits_per_byte=receipt.bits_per_byte,
        tokens_per_second=speed.median if speed is not None and fast else None,
        machine=machine if fast else "",
    )


def _of_study(artifact: Artifact, study: Study, names: CutNames) -> list[Point]:
    losses = study.losses(artifact.spec)
    full = losses.get(artifact.subnet(), 0.0)
    if not full > 0:
        return []
    speeds: dict[Subnet, tuple[float, str]] = {}
    for machine in study.speeds:
        for subnet, seconds in study.seconds(artifact.spec, machine).items():
            if seconds > 0:
                speeds[subnet] = (1 / seconds, machine)
    points = []
    for subnet, loss in losses.items():
        if not (loss > 0 and math.isfinite(loss)):
            continue
        speed, machine = speeds.get(subnet, (None, ""))
        points.append(
            Point(
                name=names.of(subnet),
                weight_bytes=subnet.weight_bytes,
                loss=loss / full - 1,
                is_measured=True,
                source=f"fit on text {study.text}",
                subnet=subnet,
                bits_per_byte=loss,
                tokens_per_second=speed,
                machine=machine,
            )
        )
    return points


def _with_frontier(points: list[Point]) -> list[Point]:
    """The points, at most so many, with those marked that nothing beats in size and loss."""
    best = frontier(points, lambda one: one.weight_bytes, lambda one: one.loss)
    chosen = {id(one) for one in best}
    others = [one for one in points if id(one) not in chosen]
    room = max(_MOST_POINTS - len(best), 0)
    return [*(replace(one, on_frontier=True) for one in best), *spread(others, room)]
