"""`pliant plan`: what fits on a device and how fast it will run, before anything is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from pliant.cli.options import Context, Json, Measurements, Quiet, Threads
from pliant.cli.output import Output, facts, table
from pliant.measurement import format_bytes, format_seconds, parse_bytes

if TYPE_CHECKING:
    from pliant.costs.planning import DevicePlan, Option
    from pliant.recipes.plan import Plan

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A folder with a config.json, an artifact, a hub id, or a name of the catalogue.",
    ),
]
DeviceNames = Annotated[
    str,
    typer.Option(
        "--device",
        "-d",
        envvar="PLIANT_DEVICE",
        metavar="NAME,...",
        help="Devices by name (see `pliant devices`) or profile; `this` is this machine.",
    ),
]
Batch = Annotated[
    int,
    typer.Option("--batch", envvar="PLIANT_BATCH", metavar="N", min=1, help="Sequences at once."),
]
Prompt = Annotated[
    int | None,
    typer.Option(
        "--prompt", envvar="PLIANT_PROMPT", metavar="N", min=1, help="Tokens of a prompt (512)."
    ),
]
MemoryLimit = Annotated[
    int | None,
    typer.Option(
        "--memory",
        envvar="PLIANT_MEMORY",
        parser=parse_bytes,
        metavar="SIZE",
        help="Most bytes of the whole process, such as 2GB (what the device can give).",
    ),
]
Speed = Annotated[
    float | None,
    typer.Option(
        "--tokens-per-second",
        envvar="PLIANT_TOKENS_PER_SECOND",
        metavar="X",
        help="Least speed of decoding, of each sequence.",
    ),
]
Joules = Annotated[
    float | None,
    typer.Option(
        "--joules", envvar="PLIANT_JOULES", metavar="X", help="Most energy of a token, in joules."
    ),
]
Offline = Annotated[
    bool, typer.Option("--offline", envvar="PLIANT_OFFLINE", help="Use no network.")
]
Operators = Annotated[
    bool,
    typer.Option(
        "--operators", envvar="PLIANT_OPERATORS", help="Show every operator of a decoded token."
    ),
]
Chart = Annotated[
    Path | None,
    typer.Option(
        "--chart",
        envvar="PLIANT_CHART",
        metavar="FILE.svg",
        help="Draw rooflines and options too; needs the extra `plot`.",
    ),
]


def plan(
    model: Model,
    device: DeviceNames = "this",
    measurements: Measurements = None,
    context: Context = None,
    batch: Batch = 1,
    prompt: Prompt = None,
    memory: MemoryLimit = None,
    speed: Speed = None,
    joules: Joules = None,
    threads: Threads = None,
    operators: Operators = False,
    chart: Chart = None,
    offline: Offline = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Foresee which depth x width x planes of a model fits on devices, and how fast it runs.

    Every time is a pair: the roofline bound, and what is to be expected with its error, calibrated
    on a machine that was probed. Exit code 3 where nothing satisfies all limits on any device; the
    nearest that would is named.
    """
    from pliant.errors import DoesNotFitError
    from pliant.recipes.measurements import with_measurements
    from pliant.recipes.plan import default_request, find_devices, make_plan
    from pliant.recipes.plan_model import find_model

    output = Output(as_json, quiet)
    if chart is not None:
        from pliant.recipes.speed_chart import require_chart

        require_chart(chart)
    found = find_model(model, offline)
    request = default_request(
        found.spec, context, batch, prompt=prompt, memory_bytes=memory, tokens_per_second=speed,
        joules=joules, threads=threads,
    )  # fmt: skip
    names = [name.strip() for name in device.split(",")]
    devices = with_measurements(find_devices(names, output.note), measurements or [])
    made = make_plan(found, devices, request)
    if chart is not None:
        from pliant.recipes.plan_chart import draw_plan

        draw_plan(made, chart)
        output.note(f"{chart} is drawn")
    _emit(output, made, operators)
    refused = [item.refusal() for item in made.devices if item.chosen is None]
    if len(refused) == len(made.devices):
        raise DoesNotFitError(" ".join(refused))
    for sentence in refused:
        output.note(sentence)


def _emit(output: Output, made: Plan, operators: bool) -> None:
    from pliant.recipes.plan import commands

    fields = {
        "model": made.model.name,
        "origin": made.model.origin,
        "spec": msgspec.to_builtins(made.model.spec),
        "experts": msgspec.to_builtins(made.model.experts),
        "request": msgspec.to_builtins(made.request),
        "ranked_by": made.ranked_by,
        "devices": [_device_fields(made, item) for item in made.devices],
    }
    readable: list[object] = []
    if len(made.devices) > 1:
        readable.append(_summary(made))
    for item in made.devices:
        readable += [_option_table(made, item), facts(_lines(made, item))]
        if operators:
            readable.append(_operator_table(made, item))
        if item.chosen is not None:
            readable += ["  " + line for line in commands(made, item.chosen, item.device)]
    output.emit(fields, *readable)


def _device_fields(made: Plan, item: DevicePlan) -> dict[str, Any]:
    from pliant.recipes.plan import commands

    return {
        "device": item.device.name,
        "title": item.device.title,
        "usable_memory_bytes": item.device.memory_bytes,
        "chosen": item.chosen and _option_fields(item.chosen),
        "nearest": _option_fields(item.nearest),
        "refusal": None if item.chosen else item.refusal(),
        "commands": commands(made, item.chosen, item.device) if item.chosen else [],
        "operators": [msgspec.to_builtins(line) for line in _operators(made, item)],
        "assumptions": _assumptions(made, item),
        "options": [_option_fields(option) for option in item.options],
    }


def _option_fields(option: Option) -> dict[str, Any]:
    choice = option.choice
    return {
        "blocks": choice.depth,
        "width": choice.width,
        "planes": choice.planes,
        "cache_bits": choice.cache_bits,
        "effective_bits": choice.subnet.effective_bits,
        "weight_bytes": option.memory.mapped + option.memory.vectors,
        "cache_bytes": option.memory.cache,
        "scratch_bytes": option.memory.scratch,
        "runtime_bytes": option.runtime_bytes,
        "total_bytes": option.total_bytes,
        "decode": msgspec.to_builtins(option.decode),
        "tokens_per_second": option.tokens_per_second,
        "tokens_per_second_bound": 1 / option.decode.bound_seconds,
        "first_token": msgspec.to_builtins(option.first_token),
        "joules_per_token": option.joules_per_token,
        "largest_context": option.largest_context,
        "concurrency": option.concurrency,
        "fits": option.fits,
    }


_COLUMNS = ("", ">blocks", ">width", ">planes", ">cache bits", ">weights", ">cache", ">in all",
            ">token/s", ">at most", ">first token", ">J/token", ">context up to",
            ">users")  # fmt: skip


def _option_table(made: Plan, item: DevicePlan) -> object:
    """Full shape at each number of planes, the chosen one, and the nearest."""
    spec = made.model.spec
    shown = [
        option
        for option in item.options
        if option.choice.depth == spec.num_blocks
        and option.choice.width == 1.0
        and option.choice.cache_bits == 16
    ]
    shown += [one for one in (item.chosen, item.nearest) if one and one not in shown]
    shown.sort(key=lambda option: -option.total_bytes)
    title = (
        f"{made.model.name} on {item.device.name}: {made.request.context} tokens of context, "
        f"{made.request.sequences} at once, prompt {made.request.prompt}"
    )
    return table(title, _COLUMNS, [_row(option, item) for option in shown])


def _row(option: Option, item: DevicePlan) -> tuple[str, ...]:
    choice = option.choice
    mark = "chosen" if option is item.chosen else "fits" if option.fits else ""
    joules = "" if option.joules_per_token is None else f"{option.joules_per_token:.3g}"
    return (
        mark,
        str(choice.depth),
        f"{choice.width:g}",
        str(choice.planes),
        str(choice.cache_bits),
        format_bytes(option.memory.mapped + option.memory.vectors),
        format_bytes(option.memory.cache),
        format_bytes(option.total_bytes),
        f"{option.tokens_per_second:.3g}",
        f"{1 / option.decode.bound_seconds:.3g}",
        format_seconds(option.first_token.seconds),
        joules,
        str(option.largest_context),
        f"{option.concurrency:.2f}",
    )


def _summary(made: Plan) -> object:
    """One line for each device: what would be chosen there."""
    rows = []
    for item in made.devices:
        option = item.chosen or item.nearest
        cells = _row(option, item)
        rows.append((item.device.name, "" if item.chosen else "nothing fits", *cells[1:]))
    return table(f"{made.model.name} on each device", ("device", *_COLUMNS), rows)


def _lines(made: Plan, item: DevicePlan) -> list[tuple[str, object]]:
    option = item.chosen or item.nearest
    error = f"+-{option.decode.error:.0%}"
    return [
        ("device", f"{item.device.title}; {format_bytes(item.device.memory_bytes)} usable"),
        ("token/s", f"{option.tokens_per_second:.3g} {error} ({option.decode.basis}); "
                    f"no engine above {1 / option.decode.bound_seconds:.3g}"),
        ("prompt", f"{format_seconds(option.first_token.seconds)} "
                   f"+-{option.first_token.error:.0%}; no engine below "
                   f"{format_seconds(option.first_token.bound_seconds)}"),
        ("memory", f"weights {format_bytes(option.memory.mapped + option.memory.vectors)} + cache "
                   f"{format_bytes(option.memory.cache)} + scratch "
                   f"{format_bytes(option.memory.scratch)} + runtime "
                   f"{format_bytes(option.runtime_bytes)}"),
        ("assumed", "; ".join(_assumptions(made, item))),
    ]  # fmt: skip


def _assumptions(made: Plan, item: DevicePlan) -> list[str]:
    """What the figures of a device rest on."""
    device = item.device
    found = [f"order of choices by {made.ranked_by}"]
    if made.model.experts is not None:
        found.append("experts equally likely; pliant's engine does not run mixtures")
    if not device.runs_pliant:
        found.append("another engine than pliant's, which runs on CPUs")
    if not device.calibrations and device.transfer is None:
        found.append("no measurement: usual fractions of the data sheet's peaks")
    if not device.usable_memory_bytes:
        found.append("a tenth of the memory left to the system")
    if device.watts is not None:
        found.append(f"{device.watts.value:g} W all the time ({device.watts.source})")
    if device.notes and not device.calibrations:
        found.append(device.notes.rstrip("."))
    if device.disturbance:
        found.append(device.disturbance)
    return found


def _operators(made: Plan, item: DevicePlan) -> list[Any]:
    """Operators of a token decoded by the chosen option."""
    from pliant.costs import Step, Widths, step_graph
    from pliant.costs.timing import operator_times

    choice = (item.chosen or item.nearest).choice
    step = Step.decode(made.request.context - 1, made.request.sequences)
    widths = Widths.of_cache(choice.cache_bits)
    graph = step_graph(choice.subnet, step, widths, made.model.experts)
    return operator_times(graph, step, item.device)


def _operator_table(made: Plan, item: DevicePlan) -> object:
    lines = _operators(made, item)
    whole = sum(line.seconds for line in lines)
    rows = [
        (
            line.name,
            str(line.count),
            f"{line.operations / 1e6:.3g}",
            format_bytes(line.memory_bytes),
            format_bytes(line.activation_bytes),
            f"{line.intensity:.2f}",
            line.bound,
            format_seconds(line.bound_seconds),
            format_seconds(line.seconds),
            f"{line.seconds / whole:.1%}" if whole else "",
        )
        for line in lines
    ]
    columns = ("operator", ">times", ">Mop", ">memory", ">activations", ">op/byte", "bound",
               ">at least", ">expected", ">share")  # fmt: skip
    return table(f"a decoded token on {item.device.name}", columns, rows)
