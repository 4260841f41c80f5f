"""`pliant bench`: how fast subnets run here, beside what the memory of the machine allows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from pliant.cli.options import Address, Json, KvBits, KvWindow, Quiet
from pliant.cli.output import Output, facts, table
from pliant.measurement import Measurement, format_bytes, format_seconds

if TYPE_CHECKING:
    from pliant.recipes.bench import BenchReport, BenchResult

Subnets = Annotated[
    list[str] | None,
    typer.Option(
        "--subnet",
        envvar="PLIANT_SUBNET",
        metavar="ADDRESS",
        help="A cut to measure, such as b4 or a saved name; repeatable (the full model).",
    ),
]
ThreadCounts = Annotated[
    str | None,
    typer.Option(
        "--threads",
        envvar="PLIANT_THREADS",
        metavar="N,...",
        help="Numbers of threads to measure with, such as 1,2 (all cores).",
    ),
]
Prompt = Annotated[
    int | None,
    typer.Option(
        "--prompt",
        envvar="PLIANT_PROMPT",
        metavar="N",
        min=1,
        help="Tokens of the prompt (512, or what the context holds).",
    ),
]
Generate = Annotated[
    int | None,
    typer.Option(
        "--generate",
        envvar="PLIANT_GENERATE",
        metavar="N",
        min=1,
        help="Tokens decoded one by one (128, or what the context holds).",
    ),
]
Repeat = Annotated[
    int,
    typer.Option(
        "--repeat",
        envvar="PLIANT_REPEAT",
        metavar="N",
        min=1,
        help="Runs of each subnet, besides one that warms up.",
    ),
]
Chart = Annotated[
    Path | None,
    typer.Option(
        "--chart",
        envvar="PLIANT_CHART",
        metavar="FILE.svg",
        help="Draw a bar chart too; needs the extra `plot`.",
    ),
]


def bench(
    address: Address,
    subnet: Subnets = None,
    threads: ThreadCounts = None,
    prompt: Prompt = None,
    generate: Generate = None,
    repeat: Repeat = 5,
    chart: Chart = None,
    kv_bits: KvBits = None,
    kv_window: KvWindow = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure token/s of prefill and decoding, beside the read bandwidth of this machine.

    Subnets and thread counts take turns, so that a busy moment hits all alike; the bandwidth is
    probed before and after. A token reads the weights of its cut and the cache behind it: their
    bytes times token/s, over the probed bandwidth, is the share of what any engine could reach.
    What --json writes can be carried to another machine, which then foresees this one: see
    --measurements of plan, fit and devices.
    """
    from pliant.artifact import Artifact, split_address
    from pliant.recipes.bench import bench as measure
    from pliant.recipes.bench import workload_for

    output = Output(as_json, quiet)
    path, cut = split_address(address)
    artifact = Artifact.open(path)
    addresses = ([cut] if cut else []) + (subnet or [])
    counts = _thread_counts(threads)
    workload = workload_for(artifact.spec.max_context, prompt, generate, repeat)
    if chart is not None:
        from pliant.recipes.speed_chart import require_chart

        require_chart(chart)
    with output.progress() as progress:
        report = measure(
            artifact,
            addresses or [""],
            counts,
            workload,
            kv_bits=kv_bits,
            kv_window=kv_window,
            progress=progress,
            say=output.note,
        )
    if chart is not None:
        from pliant.recipes.speed_chart import draw_speeds

        draw_speeds(report, chart, f"{path.name}, {report.kernels}, {report.machine}")
        output.note(f"{chart} is drawn")
    _emit(output, report, str(path))


def _thread_counts(text: str | None) -> list[int]:
    """The numbers in `1,2`; none without a text."""
    from pliant.errors import UsageError

    if text is None:
        return []
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"{text!r} are no numbers of threads; write them like 1,2.") from None


def _emit(output: Output, report: BenchReport, path: str) -> None:
    fields: dict[str, Any] = msgspec.to_builtins(report)
    fields["artifact"] = path
    for result, line in zip(report.results, fields["results"], strict=True):
        line["bytes_per_token"] = result.speed.bytes_per_token
        del line["subnet"]  # each step has it
    fields["steps"] = [
        msgspec.to_builtins(step) for result in report.results for step in result.steps()
    ]
    for probe, line in zip(report.probes, fields["probes"], strict=True):
        line["gigabytes_per_second"] = probe.rate
        line["drift"] = probe.drift
    columns = ("subnet", ">threads", ">decode token/s", ">prefill token/s", ">first token",
               ">bytes/token", ">GB/s", ">of read rate", ">memory", ">load")  # fmt: skip
    work = report.workload
    title = (
        f"{path}: {work.prompt_tokens} + {work.decode_tokens} tokens, "
        f"median [lowest, highest] of {work.repeats}"
    )
    probes = ", ".join(
        f"{probe.threads}: {probe.before.median:.1f} before, {probe.after.median:.1f} after"
        for probe in report.probes
    )
    output.emit(
        fields,
        table(title, columns, [_row(result) for result in report.results]),
        facts(
            [
                ("machine", f"{report.machine}; kernels {report.kernels}"),
                ("read bandwidth", f"GB/s by threads, {probes}"),
                ("peak memory", f"{format_bytes(report.peak_memory_bytes)} of the whole process"),
            ]
        ),
    )


def _row(result: BenchResult) -> tuple[str, ...]:
    speed = result.speed
    return (
        result.address,
        str(result.threads),
        _spread(speed.decode),
        _spread(speed.prefill),
        format_seconds(speed.first_token.median),
        format_bytes(speed.bytes_per_token),
        f"{speed.bandwidth.median:.2f}",
        f"{result.share:.0%}",
        format_bytes(speed.memory_bytes),
        format_seconds(result.load.seconds),
    )


def _spread(measured: Measurement) -> str:
    digits = 1 if measured.median < 100 else 0
    low, middle, high = (
        f"{value:.{digits}f}" for value in (measured.low, measured.median, measured.high)
    )
    return f"{middle} [{low}, {high}]"
