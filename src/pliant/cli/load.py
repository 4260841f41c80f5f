"""`pliant load`: how it feels to use a server of the OpenAI API, ours or another."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from pliant.cli.options import Json, Quiet, Seed
from pliant.cli.output import Output, facts, table
from pliant.measurement import parse_seconds

if TYPE_CHECKING:
    from pliant.load import Deadlines, Endpoint, LoadReport, PrefillCurve, RequestRecord

Url = Annotated[
    str, typer.Argument(metavar="URL", help="The server, such as http://127.0.0.1:8321.")
]
Model = Annotated[
    str,
    typer.Option("--model", envvar="PLIANT_MODEL", metavar="NAME", help="The model to ask for."),
]
Key = Annotated[
    str,
    typer.Option("--key", envvar="PLIANT_KEY", metavar="KEY", help="The bearer key, if any."),
]
Chat = Annotated[
    bool, typer.Option("--chat", envvar="PLIANT_CHAT", help="Ask for chats, not completions.")
]
Rate = Annotated[
    float,
    typer.Option("--rate", envvar="PLIANT_RATE", metavar="R", help="Requests a second."),
]
Requests = Annotated[
    int,
    typer.Option("--requests", envvar="PLIANT_REQUESTS", metavar="N", min=1, help="How many."),
]
ArrivalKind = Annotated[
    str,
    typer.Option(
        "--arrivals",
        envvar="PLIANT_ARRIVALS",
        metavar="KIND",
        help="poisson (exponential gaps) or constant.",
    ),
]
Trace = Annotated[
    Path | None,
    typer.Option(
        "--trace",
        envvar="PLIANT_TRACE",
        metavar="FILE",
        help='In place of both: a line {"at": seconds, "words": n, "max_tokens": m} a request.',
    ),
]
PromptWords = Annotated[
    int,
    typer.Option(
        "--prompt-words", envvar="PLIANT_PROMPT_WORDS", metavar="N", min=1, help="Words of prompts."
    ),
]
WrittenTokens = Annotated[
    int,
    typer.Option(
        "--max-tokens", envvar="PLIANT_MAX_TOKENS", metavar="N", min=1, help="Tokens of answers."
    ),
]
Extra = Annotated[
    str,
    typer.Option(
        "--extra",
        envvar="PLIANT_EXTRA",
        metavar="JSON",
        help="Fields for every body, such as '{\"ignore_eos\": true}'.",
    ),
]
FirstDeadline = Annotated[
    float | None,
    typer.Option(
        "--first-deadline",
        envvar="PLIANT_FIRST_DEADLINE",
        parser=parse_seconds,
        metavar="TIME",
        help="For the first token (100ms); with --prefill-words beyond what its prompt takes.",
    ),
]
BetweenDeadline = Annotated[
    float | None,
    typer.Option(
        "--between-deadline",
        envvar="PLIANT_BETWEEN_DEADLINE",
        parser=parse_seconds,
        metavar="TIME",
        help="From one token to the next (50ms).",
    ),
]
PrefillWords = Annotated[
    str | None,
    typer.Option(
        "--prefill-words",
        envvar="PLIANT_PREFILL_WORDS",
        metavar="N,...",
        help="First measure prompts of these sizes alone and fit deadlines to them.",
    ),
]
Capacity = Annotated[
    bool,
    typer.Option(
        "--capacity",
        envvar="PLIANT_CAPACITY",
        help="Search the largest rate at which 99 % of texts miss at most a tenth of deadlines.",
    ),
]
CsvFile = Annotated[
    Path | None,
    typer.Option("--csv", envvar="PLIANT_CSV", metavar="FILE", help="A line for each request."),
]
HtmlFile = Annotated[
    Path | None,
    typer.Option("--html", envvar="PLIANT_HTML", metavar="FILE", help="A page with pictures."),
]


def load(
    url: Url,
    model: Model = "",
    key: Key = "",
    chat: Chat = False,
    rate: Rate = 1.0,
    requests: Requests = 50,
    arrivals: ArrivalKind = "poisson",
    trace: Trace = None,
    prompt_words: PromptWords = 64,
    max_tokens: WrittenTokens = 64,
    extra: Extra = "{}",
    first_deadline: FirstDeadline = None,
    between_deadline: BetweenDeadline = None,
    prefill_words: PrefillWords = None,
    capacity: Capacity = False,
    seed: Seed = 0,
    csv: CsvFile = None,
    html: HtmlFile = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Send requests to a server when they are due, and measure what their users feel.

    Times count from when a request was due; tokens are counted by the server's usage. The
    fluidity-index (arXiv 2407.07000) is the share of its deadlines that a text met.
    """
    from pliant.load import Deadlines, Endpoint, draw_arrivals, find_capacity, read_arrivals

    output = Output(as_json, quiet)
    endpoint = Endpoint(url=url, model=model, key=key, chat=chat, extra=_object(extra))
    deadlines = Deadlines(
        round((0.1 if first_deadline is None else first_deadline) * 1e9),
        round((0.05 if between_deadline is None else between_deadline) * 1e9),
    )
    if arrivals not in ("poisson", "constant"):
        raise _usage(f"Arrivals of kind {arrivals!r} are unknown; use poisson or constant.")
    run = _Run(endpoint, deadlines, output, _curve(endpoint, prefill_words, output))

    def at_rate(wanted: float) -> LoadReport:
        return run(
            draw_arrivals(arrivals, wanted, requests, prompt_words, max_tokens, seed),  # type: ignore[arg-type]
            f"{wanted:.3g} requests/s",
        )

    if capacity:
        found = find_capacity(lambda wanted: at_rate(wanted).is_feasible, rate)
        output.note(f"capacity {found:.3g} requests/s")
        report = at_rate(found) if found else run.last
    else:
        found = None
        report = run(read_arrivals(trace), str(trace)) if trace else at_rate(rate)
    _write(run, report, csv, html, url)
    _emit(output, report, found, run.curve)


class _Run:
    """Runs one load after another, each with prompts that no run before it had."""

    def __init__(
        self, endpoint: Endpoint, deadlines: Deadlines, output: Output, curve: PrefillCurve | None
    ) -> None:
        self._endpoint, self.deadlines, self._output = endpoint, deadlines, output
        self.curve = curve
        self.records: list[RequestRecord] = []
        self._number = 0
        self.last: Any = None

    def __call__(self, arrivals: Sequence[Any], name: str) -> LoadReport:
        from pliant.load import run_load, summarize

        with self._output.progress() as progress:
            done = 0

            def count(record: RequestRecord) -> None:
                nonlocal done
                done += 1
                progress(name, done, len(arrivals))

            self.records, late = asyncio.run(
                run_load(self._endpoint, arrivals, count, self._number)
            )
        self._number += len(arrivals)
        self.last = report = summarize(self.records, self.deadlines, self.curve, late)
        self._output.note(
            f"{name}: {report.fluid_share:.0%} of texts fluid, "
            f"{report.tokens_per_second:.1f} token/s, {report.failed} failed"
        )
        return report


def _curve(endpoint: Endpoint, words: str | None, output: Output) -> PrefillCurve | None:
    from pliant.load import fit_prefill_curve, profile_prefill

    if words is None:
        return None
    try:
        sizes = [int(part) for part in words.split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1:
        raise _usage(f"{words!r} are no sizes of prompts; write them like 16,64,256.")
    points = asyncio.run(profile_prefill(endpoint, sizes))
    curve = fit_prefill_curve([tokens for tokens, _ in points], [time for _, time in points])
    output.note(
        f"first token of S tokens: {curve.constant / 1e6:.2f} + {curve.linear / 1e6:.4f} S + "
        f"{curve.square / 1e6:.3g} S^2 ms"
    )
    return curve


def _write(run: _Run, report: LoadReport, csv: Path | None, html: Path | None, url: str) -> None:
    if csv is not None:
        lines = ["arrived_ns,words,prompt_tokens,tokens,first_token_ns,last_token_ns,error"]
        for record in run.records:
            first, last = (record.times[0], record.times[-1]) if record.times else ("", "")
            error = '"' + (record.error or "").replace('"', "'") + '"'
            lines.append(
                f"{record.arrived},{record.words},{record.prompt_tokens},{len(record.times)},"
                f"{first},{last},{error}"
            )
        csv.write_text("\n".join(lines) + "\n", encoding="utf-8")
    if html is not None:
        from pliant.load.page import render_page

        html.write_text(render_page(url, report, run.records, run.deadlines), encoding="utf-8")


def _emit(
    output: Output, report: LoadReport, found: float | None, curve: PrefillCurve | None
) -> None:
    rows = [
        (name, *(f"{1000 * value:.1f}" for value in msgspec.structs.astuple(sample)[1:]))
        for name, sample in (
            ("time to first token", report.first_token),
            ("between tokens", report.between_tokens),
            ("mean of a text", report.per_token),
            ("whole request by token", report.normalized),
        )
        if sample is not None
    ]
    lines: list[tuple[str, object]] = [
        ("requests", f"{report.requests}, {report.failed} failed"),
        ("throughput", f"{report.requests_per_second:.2f} requests/s, "
                       f"{report.tokens_per_second:.1f} token/s"),
        ("fluid texts", f"{report.fluid_share:.0%}; missed deadlines p99 {report.missed_p99:.0%}"),
        ("sent late", f"{1000 * report.most_late_start:.1f} ms at most"),
    ]  # fmt: skip
    if found is not None:
        lines.append(("capacity", f"{found:.3g} requests/s"))
    data = {
        **msgspec.to_builtins(report),
        "capacity": found,
        "prefill_curve": None if curve is None else msgspec.to_builtins(curve),
    }
    columns = ("ms", ">mean", ">p50", ">p90", ">p99", ">most")
    output.emit(data, table("", columns, rows), facts(lines))


def _object(text: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise _usage(f"--extra is no JSON object: {error}.") from error


def _usage(message: str) -> Exception:
    from pliant.errors import UsageError

    return UsageError(message)
