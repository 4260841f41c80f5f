"""`pliant load`: how it feels to use a server of the OpenAI API, ours or another."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
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
WarmUp = Annotated[
    int,
    typer.Option(
        "--warm-up",
        envvar="PLIANT_WARM_UP",
        metavar="N",
        min=0,
        help="Requests to send one by one first, which do not count.",
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
    warm_up: WarmUp = 3,
    seed: Seed = 0,
    csv: CsvFile = None,
    html: HtmlFile = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Send requests to a server when they are due, and measure what their users feel.

    Times count from when a request was due; tokens are counted by the server's usage. The
    fluidity-index (arXiv 2407.07000) is the share of its deadlines that a text met. After Ctrl-C
    the requests that were answered are reported.
    """
    from pliant.load import Deadlines, Endpoint, draw_arrivals, read_arrivals

    output = Output(as_json, quiet)
    endpoint = Endpoint(url=url, model=model, key=key, chat=chat, extra=_object(extra))
    deadlines = Deadlines(
        round((0.1 if first_deadline is None else first_deadline) * 1e9),
        round((0.05 if between_deadline is None else between_deadline) * 1e9),
    )
    if arrivals not in ("poisson", "constant"):
        raise _usage(f"Arrivals of kind {arrivals!r} are unknown; use poisson or constant.")
    if capacity and trace is not None:
        raise _usage("A trace has a rate of its own, so there is none to search; leave out one of "
                     "--trace and --capacity.")  # fmt: skip

    def at_rate(wanted: float) -> Sequence[Any]:
        """The requests of a run at a rate."""
        return draw_arrivals(arrivals, wanted, requests, prompt_words, max_tokens, seed)  # type: ignore[arg-type]

    given = at_rate(rate) if trace is None else read_arrivals(trace)
    run = _Run(endpoint, deadlines, output)
    run.warm_up([given[0]] * warm_up)
    run.fit(_sizes(prefill_words))
    found: float | None = None
    try:
        if capacity:
            found = run.search(at_rate, rate)
        else:
            run(given, str(trace) if trace else f"{rate:.3g} requests/s")
    except KeyboardInterrupt:
        run.interrupted = True
    _write(run, csv, html, url)
    _emit(output, run, found)
    _judge(run)


class _Run:
    """Runs one load after another, each with prompts that no run before it had."""

    def __init__(self, endpoint: Endpoint, deadlines: Deadlines, output: Output) -> None:
        self._endpoint, self.deadlines, self._output = endpoint, deadlines, output
        self.curve: PrefillCurve | None = None
        self.records: list[RequestRecord] = []
        self._number = 0
        self.report: Any = None
        #: The largest that any run reached, while nearly all its texts were fluid.
        self.fluid_token_rate = 0.0
        self.interrupted = False

    def warm_up(self, arrivals: Sequence[Any]) -> None:
        """Send some requests one by one, whose times do not count; a failure ends it."""
        from pliant.load import run_load

        for arrival in arrivals:
            records, _ = asyncio.run(run_load(self._endpoint, [arrival], first_number=self._number))
            self._number += 1
            if not records[0].times:
                return

    def fit(self, sizes: Sequence[int]) -> None:
        """Measure prompts of these sizes alone, and fit deadlines to them."""
        from pliant.load import fit_prefill_curve, profile_prefill

        if not sizes:
            return
        points = asyncio.run(profile_prefill(self._endpoint, sizes))
        curve = fit_prefill_curve([tokens for tokens, _ in points], [time for _, time in points])
        self.curve = curve
        self._output.note(
            f"first token of S tokens: {curve.constant / 1e6:.2f} + {curve.linear / 1e6:.4f} S + "
            f"{curve.square / 1e6:.3g} S^2 ms"
        )

    def search(self, at_rate: Callable[[float], Sequence[Any]], guess: float) -> float:
        """The capacity in requests a second; the last run is one at it, if there is any."""
        from pliant.load import find_capacity

        def run(wanted: float) -> LoadReport:
            return self(at_rate(wanted), f"{wanted:.3g} requests/s")

        found = find_capacity(lambda wanted: run(wanted).is_feasible, guess)
        self._output.note(f"capacity {found:.3g} requests/s")
        if found:
            run(found)
        return found

    def __call__(self, arrivals: Sequence[Any], name: str) -> LoadReport:
        from pliant.load import run_load

        done: list[RequestRecord] = []
        number, self._number = self._number, self._number + len(arrivals)
        with self._output.progress() as progress:

            def count(record: RequestRecord) -> None:
                done.append(record)
                progress(name, len(done), len(arrivals))

            try:
                asyncio.run(run_load(self._endpoint, arrivals, count, number))
            finally:
                # However it ends, what was measured is kept.
                report = self._keep(done, len(arrivals))
        self._output.note(
            f"{name}: {report.fluid_share:.0%} of texts fluid, "
            f"{report.tokens_per_second:.1f} token/s, {report.failed} failed"
        )
        return report

    def _keep(self, records: Sequence[RequestRecord], wanted: int) -> LoadReport:
        from pliant.load import summarize

        self.records = sorted(records, key=lambda record: record.arrived)
        left = wanted - len(records)
        report = summarize(self.records, self.deadlines, self.curve, unfinished=left)
        self.report = report
        if not left:
            self.fluid_token_rate = max(self.fluid_token_rate, report.fluid_token_rate)
        return report


def _sizes(words: str | None) -> list[int]:
    if words is None:
        return []
    try:
        sizes = [int(part) for part in words.split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1:
        raise _usage(f"{words!r} are no sizes of prompts; write them like 16,64,256.")
    return sizes


def _write(run: _Run, csv: Path | None, html: Path | None, url: str) -> None:
    if csv is not None:
        from pliant.load.table import render_csv

        csv.write_text(render_csv(run.records, run.deadlines, run.curve), encoding="utf-8")
    if html is not None:
        from pliant.load.page import render_page

        html.write_text(render_page(url, run.report, run.records, run.deadlines), encoding="utf-8")


def _emit(output: Output, run: _Run, found: float | None) -> None:
    report, curve = run.report, run.curve
    data = {
        **msgspec.to_builtins(report),
        "fluid_token_rate": run.fluid_token_rate,
        "capacity": found,
        "prefill_curve": None if curve is None else msgspec.to_builtins(curve),
    }
    output.emit(data, *_timings(report), facts(_facts(report, run.fluid_token_rate, found)))


def _timings(report: LoadReport) -> list[Any]:
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
    columns = ("ms", ">mean", ">p50", ">p90", ">p99", ">most")
    return [table("", columns, rows)] if rows else []


def _facts(
    report: LoadReport, fluid_token_rate: float, found: float | None
) -> list[tuple[str, object]]:
    unfinished = f", {report.unfinished} not finished" if report.unfinished else ""
    lines: list[tuple[str, object]] = [
        ("requests", f"{report.requests}, {report.failed} failed{unfinished}"),
        *(("failed", f"{count} x {reason}") for reason, count in report.errors.items()),
        ("throughput", f"{report.requests_per_second:.2f} requests/s, "
                       f"{report.tokens_per_second:.1f} token/s"),
    ]  # fmt: skip
    if report.fluidity:
        mean, least = sum(report.fluidity) / len(report.fluidity), min(report.fluidity)
        lines.append(("fluidity-index", f"{mean:.3f} mean, {least:.3f} least"))
    lines += [
        ("fluid texts", f"{report.fluid_share:.0%}; missed deadlines p99 {report.missed_p99:.0%}"),
        ("fluid token rate", f"{fluid_token_rate:.1f} token/s" if fluid_token_rate
                             else "none: fewer than 99 % of texts were fluid"),
        ("sent late", f"{1000 * report.most_late_start:.1f} ms at most"),
    ]  # fmt: skip
    if report.uncounted:
        lines.append(("tokens", f"of {report.uncounted} answers the server did not count them; "
                                "each piece of text counts as one"))  # fmt: skip
    if found is not None:
        lines.append(("capacity", f"{found:.3g} requests/s"))
    return lines


def _judge(run: _Run) -> None:
    """Fail where the run was stopped, or measured nothing."""
    from pliant.errors import DataError

    report = run.report
    if run.interrupted:
        raise DataError(
            f"Interrupted; this is what {report.requests} of "
            f"{report.requests + report.unfinished} requests measured."
        )
    if report.failed == report.requests:
        raise DataError(f"None of {report.requests} requests was answered.")


def _object(text: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except (ValueError, RecursionError) as error:
        raise _usage(f"--extra is no JSON object: {error}.") from error


def _usage(message: str) -> Exception:
    from pliant.errors import UsageError

    return UsageError(message)
