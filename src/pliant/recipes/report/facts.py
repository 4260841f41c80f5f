"""What a report says: measured and predicted cuts, planes of each matrix, what fits on devices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pliant.artifact import Artifact
from pliant.costs.device import Device
from pliant.costs.planning import Choice, DevicePlan, PlanRequest, plan_device
from pliant.errors import ArtifactError
from pliant.recipes.plan import default_request, model_choices
from pliant.recipes.plan_model import PlannedModel
from pliant.recipes.report.measured import measured_points
from pliant.recipes.report.names import CutNames, address, is_mixed
from pliant.recipes.report.point import Point
from pliant.search import frontier, spread
from pliant.subnet import Subnet

#: Cuts of the predicted frontier that are drawn and priced on every device.
_MOST_CUTS = 24
#: Planes of the heat map where they are stored: below them shapes hardly matter.
_HEAT_PLANES = 4


@dataclass(frozen=True)
class HeatMap:
    """Losses by depth and width at `planes` planes, as `Point`s by blocks kept and width."""

    planes: int
    depths: tuple[int, ...]
    widths: tuple[float, ...]
    cells: dict[tuple[int, float], Point]


@dataclass(frozen=True)
class Report:
    """Everything a page shows.

    `measured` and `predicted` hold points, the smallest first; `heat_map` is None without
    sensitivities. `shown` is the subnet whose planes are listed, under `shown_name`, for the
    reason `shown_why`. `devices` are plans of the predicted frontier (`ranked_by` says on what
    its order rests). `notes` say what was left out.
    """

    artifact: Artifact
    measured: tuple[Point, ...]
    predicted: tuple[Point, ...]
    heat_map: HeatMap | None
    shown: Subnet
    shown_name: str
    shown_why: str
    request: PlanRequest
    devices: tuple[DevicePlan, ...]
    ranked_by: str
    notes: tuple[str, ...]


def make_report(
    artifact: Artifact,
    cut: str = "",
    devices: Sequence[Device] = (),
    context: int | None = None,
) -> Report:
    """Gather what an artifact says of itself, and foresee what of it fits on `devices`.

    `cut` is the subnet whose planes are shown by matrix; without one it is a saved cut, one with
    mixed planes first. Nothing is measured here. Raises `UsageError` for a cut that does not exist
    and `ArtifactError` for sensitivities that lack an axis.
    """
    _check(artifact)
    choices, ranked_by = _choices(artifact)
    names = {artifact.subnet(name): name for name in artifact.subnet_names()}
    names[artifact.subnet()] = "full"
    shapes = {choice.subnet.shape: (choice.depth, choice.width) for choice in reversed(choices)}
    measured, notes = measured_points(artifact, CutNames(names, shapes))
    kept = frontier(choices, lambda one: one.subnet.weight_bytes, lambda one: one.rank)
    kept = spread(kept, _MOST_CUTS)
    predicted = [_predicted(artifact, choice, on_frontier=True) for choice in kept]
    shown_name, shown_why = _shown(artifact, cut)
    request = default_request(artifact.spec, context)
    return Report(
        artifact=artifact,
        measured=tuple(measured),
        predicted=tuple(point for point in predicted if point is not None),
        heat_map=_heat_map(artifact, choices, measured),
        shown=artifact.subnet("" if shown_name == "full" else shown_name),
        shown_name=shown_name,
        shown_why=shown_why,
        request=request,
        devices=tuple(plan_device(kept, device, request) for device in devices),
        ranked_by=ranked_by,
        notes=tuple(notes),
    )


def _check(artifact: Artifact) -> None:
    known = artifact.manifest.sensitivities
    if known is None:
        return
    for axis in ("depth", "width", "planes", "vocabulary_planes"):
        if not getattr(known, axis):
            raise ArtifactError(
                f"The sensitivities of {artifact.path} say nothing of {axis}; build it again."
            )


def _choices(artifact: Artifact) -> tuple[list[Choice], str]:
    """Every depth x width x planes with a cache of 16 bits, and what their order rests on."""
    model = PlannedModel(str(artifact.path), "artifact", artifact.spec, artifact=artifact)
    choices, ranked_by = model_choices(model)
    return [choice for choice in choices if choice.cache_bits == 16], ranked_by


def _predicted(artifact: Artifact, choice: Choice, *, on_frontier: bool = False) -> Point | None:
    """A choice with the loss that sensitivities foresee; None where there are none."""
    known = artifact.manifest.sensitivities
    if known is None or not known.dense_loss > 0 or not math.isfinite(choice.rank):
        return None
    return Point(
        name=address(choice.subnet, choice.depth, choice.width),
        weight_bytes=choice.subnet.weight_bytes,
        loss=choice.rank / known.dense_loss,
        is_measured=False,
        source="sensitivities",
        subnet=choice.subnet,
        on_frontier=on_frontier,
    )


def _heat_map(
    artifact: Artifact, choices: Sequence[Choice], measured: Sequence[Point]
) -> HeatMap | None:
    """Depth x width at one number of planes; measured losses go before predicted ones."""
    planes = min(_HEAT_PLANES, max(choice.planes for choice in choices))
    by_subnet = {point.subnet: point for point in measured if point.subnet is not None}
    cells = {}
    for choice in choices:
        if choice.planes != planes:
            continue
        point = by_subnet.get(choice.subnet) or _predicted(artifact, choice)
        if point is not None:
            cells[choice.depth, choice.width] = point
    if not cells:
        return None
    depths = tuple(sorted({depth for depth, _ in cells}, reverse=True))
    widths = tuple(sorted({width for _, width in cells}, reverse=True))
    return HeatMap(planes, depths, widths, cells)


def _shown(artifact: Artifact, cut: str) -> tuple[str, str]:
    """Which subnet is listed matrix by matrix, and why this one."""
    if cut:
        return cut, "asked for"
    saved = artifact.subnet_names()
    for name in saved:
        if is_mixed(artifact.subnet(name)):
            return name, "the first saved cut with mixed planes"
    if saved:
        return saved[0], "the first saved cut; none has mixed planes"
    address = f"b{min(_HEAT_PLANES, artifact.num_planes)}"
    return address, "no cut is saved; `pliant fit` chooses and saves one"
