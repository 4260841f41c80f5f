"""`pliant plan`: what of a model fits on devices, how fast, and the commands that get there."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from pliant.bits import BitPlan
from pliant.costs.catalogue import catalogue
from pliant.costs.device import Device, load_device
from pliant.costs.planning import Choice, DevicePlan, Option, PlanRequest, plan_device
from pliant.errors import UsageError
from pliant.recipes.plan_model import PlannedModel
from pliant.recipes.probe import THIS, probe, profile_path, save_device
from pliant.sensitivities import Sensitivities
from pliant.shape import SubnetShape
from pliant.spec import ModelSpec
from pliant.subnet import CutAddress, Subnet

#: Parts of depth and width that are tried where no artifact says what it holds.
_DEPTHS = (1.0, 0.875, 0.75, 0.625, 0.5)
_WIDTHS = (1.0, 0.75, 0.5)
#: A rule for the order of choices where no loss was measured, not a forecast: what the demo model
#: and three others lost by planes (docs/how_it_works/bits.md), and for each part of the blocks or
#: of the width left out after tuning. An int8 cache costs next to nothing.
_PLANE_RANK = {8: 0.0, 7: 0.001, 6: 0.004, 5: 0.015, 4: 0.06, 3: 0.25, 2: 1.2, 1: 5.0}
_SHAPE_RANK = 1.5
_CACHE_RANK = {16: 0.0, 8: 0.002, 4: 0.004, 3: 0.006, 2: 0.02}


@dataclass(frozen=True)
class Plan:
    """A model, what was asked of it, and the answer for each device."""

    model: PlannedModel
    request: PlanRequest
    devices: tuple[DevicePlan, ...]
    ranked_by: str


def make_plan(
    model: PlannedModel, devices: Sequence[Device], request: PlanRequest | None = None
) -> Plan:
    """The plan of a model for devices; without a request a short context that the model has."""
    request = request or default_request(model.spec)
    if request.context > model.spec.max_context:
        raise UsageError(
            f"A context of {request.context} tokens was asked for; {model.name} reads at most "
            f"{model.spec.max_context}."
        )
    choices, ranked_by = model_choices(model)
    return Plan(
        model=model,
        request=request,
        devices=tuple(
            plan_device(choices, device, request, model.experts) for device in devices
        ),
        ranked_by=ranked_by,
    )  # fmt: skip


def default_request(
    spec: ModelSpec, context: int | None = None, sequences: int = 1, **limits: float | int | None
) -> PlanRequest:
    """A request with what was left open: 4096 tokens or what the model reads, a prompt of 512."""
    context = context or min(4096, spec.max_context)
    fields = {"prompt": min(512, context), **{k: v for k, v in limits.items() if v is not None}}
    return msgspec.convert({"context": context, "sequences": sequences, **fields}, PlanRequest)


def find_devices(
    names: Sequence[str], say: Callable[[str], None] = lambda text: None
) -> list[Device]:
    """Devices by name; `this` is probed, and `say` is told so, where no profile was kept yet."""
    found = []
    for name in names:
        if name == THIS and not profile_path().exists():
            say("this machine was not probed yet; that takes less than a minute")
            device = probe()
            save_device(device)
            found.append(device)
        else:
            found.append(load_device(name))
    return found


def model_choices(model: PlannedModel) -> tuple[list[Choice], str]:
    """Every choice of a model, and what their order rests on."""
    if model.artifact is not None:
        return _artifact_choices(model)
    spec, choices = model.spec, []
    depths = dict.fromkeys(max(1, round(part * spec.num_blocks)) for part in _DEPTHS)
    for depth in depths:
        for width in _WIDTHS:
            shape = SubnetShape.uniform(spec, tuple(range(depth)), width)
            kept = _kept_part(shape, spec)
            for planes, rank in _PLANE_RANK.items():
                subnet = Subnet(spec, shape, BitPlan.uniform(depth, planes))
                choices += _with_caches(depth, width, planes, subnet,
                                        rank + _SHAPE_RANK * (1 - kept))  # fmt: skip
    return choices, "a rule of thumb; build the model to measure its losses"


def _kept_part(shape: SubnetShape, spec: ModelSpec) -> float:
    """The part of the block weights that a shape keeps."""
    kept = sum(
        groups / spec.num_groups + 2 * neurons / spec.ffn_size
        for groups, neurons in zip(shape.groups, shape.neurons, strict=True)
    )
    return kept / (3 * spec.num_blocks)


def _with_caches(
    depth: int,
    width: float,
    planes: int,
    subnet: Subnet,
    rank: float,
    measured: Sensitivities | None = None,
) -> list[Choice]:
    """The choice with each cache; what it loses is measured or by the rule."""
    if measured is not None and measured.cache:
        known = [bits for bits in _CACHE_RANK if bits in measured.cache]
        lost_by = {bits: measured.cache_increase(bits) for bits in known}
    else:
        lost_by = _CACHE_RANK
    return [
        Choice(
            depth=depth, width=width, planes=planes, cache_bits=bits,
            subnet=subnet.with_cache(bits), rank=rank + lost,
        )
        for bits, lost in lost_by.items()
    ]  # fmt: skip


def _artifact_choices(model: PlannedModel) -> tuple[list[Choice], str]:
    """The cuts of an artifact, ordered by its sensitivities where it has them."""
    artifact = model.artifact
    assert artifact is not None
    measured = artifact.manifest.sensitivities
    depths: tuple[int, ...]
    widths: tuple[float, ...]
    if measured is None:
        depths, widths = tuple(artifact.depth_path()), _WIDTHS
        planes_of = tuple(range(1, artifact.num_planes + 1))
    else:
        depths, widths = tuple(measured.depth), tuple(measured.width)
        planes_of = tuple(measured.planes)
    choices = []
    for depth in sorted(depths, reverse=True):
        for width in sorted(widths, reverse=True):
            for planes in sorted(planes_of, reverse=True):
                subnet = artifact.subnet(str(CutAddress(depth, width, planes)))
                if measured is None:
                    kept = _kept_part(subnet.shape, artifact.spec)
                    rank = _PLANE_RANK[planes] + _SHAPE_RANK * (1 - kept)
                else:
                    rank = measured.predict(
                        depth=depth, width=width, planes=planes,
                        vocabulary_planes=_known(subnet.bits.embedding, measured.vocabulary_planes),
                    ) - measured.dense_loss  # fmt: skip
                choices += _with_caches(depth, width, planes, subnet, rank, measured)
    if not choices:
        raise UsageError(f"{model.name} offers no cuts; build it again.")
    basis = "a rule of thumb" if measured is None else "the artifact's measured sensitivities"
    return choices, basis


def _known(planes: int, measured: dict[int, float]) -> int:
    """The number of vocabulary planes with a measured loss that is nearest to `planes`."""
    return min(measured, key=lambda count: abs(count - planes))


def hub_id(model: PlannedModel) -> str:
    """The whole hub id of a model that was named by its last part."""
    wanted = model.name.lower()
    return next(
        (known for known in catalogue() if known.lower().rpartition("/")[2] == wanted), model.name
    )


def commands(plan: Plan, option: Option, device: Device) -> list[str]:
    """The commands that make and fit what was chosen."""
    model = plan.model
    if model.experts is not None:
        return []
    lines = []
    target = model.name
    if model.artifact is None:
        folder = model.name.rstrip("/").rpartition("/")[2] or model.name
        source = model.name if model.origin == "local config" else hub_id(model)
        target = f"{folder}.pliant"
        lines.append(shlex.join(["pliant", "build", source, "--output", target]))
    limit = plan.request.memory_bytes or device.memory_bytes
    least = option.memory.total
    megabytes = (limit - option.runtime_bytes) // 10**6
    budget = f"{megabytes:.0f}MB" if megabytes * 10**6 >= least else str(least)
    fit = ["pliant", "fit", target, "--memory", budget]
    fit += ["--context", str(plan.request.context)]
    if option.choice.cache_bits != 16:
        fit += ["--kv-bits", str(option.choice.cache_bits)]
    if plan.request.tokens_per_second is not None:
        fit += ["--device", device.name, "--tokens-per-second",
                f"{plan.request.tokens_per_second:g}"]  # fmt: skip
    return [*lines, shlex.join(fit)]
