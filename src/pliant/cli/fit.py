"""`pliant fit`: the best subnet within a budget."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from pliant.cli.opening import measured_documents
from pliant.cli.options import (
    ArtifactPath,
    Context,
    DryRun,
    Json,
    KvBits,
    KvWindow,
    Limit,
    MaxLoss,
    Measurements,
    Memory,
    Name,
    Quiet,
    Text,
    Threads,
)
from pliant.cli.output import Output, table
from pliant.measurement import format_bytes, parse_seconds

if TYPE_CHECKING:
    from pliant.recipes.device_limits import DeviceLimits
    from pliant.recipes.fit import Fit, Offer
    from pliant.search import Budget, Candidate

#: UTF-8 bytes measured on unless --limit says otherwise: enough to tell candidates apart.
_TEXT_BYTES = 20_000
#: Rows of the predicted frontier that are printed; --json has all of it.
_FRONTIER_ROWS = 12

Study = Annotated[
    int,
    typer.Option(
        "--study",
        envvar="PLIANT_STUDY",
        metavar="N",
        min=0,
        help="Cuts measured once to learn predictions from; kept in the artifact. 0: none.",
    ),
]
Verify = Annotated[
    int,
    typer.Option(
        "--verify",
        envvar="PLIANT_VERIFY",
        metavar="N",
        min=1,
        help="Best predicted that are measured.",
    ),
]
OnDevice = Annotated[
    str | None,
    typer.Option(
        "--device",
        envvar="PLIANT_DEVICE",
        metavar="NAME",
        help="Where speed and energy are bounded: a device or profile (this).",
    ),
]
LeastSpeed = Annotated[
    float | None,
    typer.Option(
        "--tokens-per-second",
        envvar="PLIANT_TOKENS_PER_SECOND",
        metavar="X",
        help="Least speed of decoding: measured here, or computed with --device.",
    ),
]
FirstToken = Annotated[
    float | None,
    typer.Option(
        "--first-token",
        envvar="PLIANT_FIRST_TOKEN",
        parser=parse_seconds,
        metavar="TIME",
        help="Longest wait for the first token there, such as 500ms.",
    ),
]
MostJoules = Annotated[
    float | None,
    typer.Option(
        "--joules", envvar="PLIANT_JOULES", metavar="X", help="Most energy of a token there."
    ),
]


def fit(
    artifact: ArtifactPath,
    memory: Memory,
    max_loss: MaxLoss = None,
    context: Context = None,
    kv_bits: KvBits = None,
    kv_window: KvWindow = None,
    text: Text = None,
    limit: Limit = None,
    verify: Verify = 3,
    study: Study = 32,
    name: Name = None,
    device: OnDevice = None,
    measurements: Measurements = None,
    speed: LeastSpeed = None,
    first_token: FirstToken = None,
    joules: MostJoules = None,
    threads: Threads = None,
    dry_run: DryRun = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Find the subnet with the lowest measured loss within a memory budget.

    Some cuts spread over all are measured once; from them every depth, width and number of planes
    is predicted, and the best are measured beside the dense shape at fewer bits, the best of them
    once more with mixed bits, each matrix as many planes as its sensitivity asks. Caches of 16 and
    fewer bits are weighed too, unless --kv-bits says which to hold. What was measured
    is kept in the artifact, so later fits on the same text are instant. Speed is bounded as
    measured here, or, with --device, like first tokens and energy, as computed for any device of
    `pliant devices`. With --name the chosen one is saved as X.pliant@NAME, with mixed bits always.
    """
    from pliant.recipes.fit import fit as fit_artifact
    from pliant.recipes.fit import offer
    from pliant.runtime.text_engine import open_artifact
    from pliant.search import Budget

    output = Output(as_json, quiet)
    asked_there = (device, first_token, joules, measurements or None)
    measured_here = all(item is None for item in asked_there)
    budget = Budget(
        memory_bytes=memory,
        max_loss_increase=max_loss,
        min_tokens_per_second=speed if measured_here else None,
    )
    limits = (
        None
        if measured_here
        else _limits(output, device, measurements or [], speed, first_token, joules)
    )
    with open_artifact(artifact) as model:
        if dry_run:
            offered = offer(model, context, budget, limits, kv_bits, kv_window)
            _emit_offer(output, offered, budget, artifact)
            return
        documents, text_name = measured_documents(text, limit or _TEXT_BYTES)
        with output.progress() as progress:
            found = fit_artifact(
                model, budget, documents, context=context, verify=verify, study=study,
                threads=threads, limits=limits, kv_bits=kv_bits, kv_window=kv_window,
                progress=progress,
            )  # fmt: skip
        chosen = found.search.chosen.candidate
        if name is None and model.subnet(str(chosen.address)) != chosen.subnet:
            # No address can say which matrix reads what, or a window, so the plan needs a name.
            kind = "mixed" if chosen.is_mixed else "fit"
            name = f"{kind}-{chosen.address}-{chosen.memory_bytes}"
        if name is not None:
            model.artifact.save_subnet(name, chosen.subnet)
    if not found.saved:
        output.note(f"{artifact} cannot be written; the next fit measures its cuts again.")
    _emit_fit(output, found, budget, artifact, name, text_name)


def _limits(
    output: Output,
    device: str | None,
    measurements: Sequence[str],
    speed: float | None,
    first_token: float | None,
    joules: float | None,
) -> DeviceLimits:
    """Limits on a device (this one by default); a device without a limit is a usage error."""
    from pliant.errors import UsageError
    from pliant.recipes.device_limits import DeviceLimits
    from pliant.recipes.measurements import with_measurements
    from pliant.recipes.plan import find_devices

    if speed is None and first_token is None and joules is None:
        raise UsageError(
            f"The device {device} was given without a limit; give --tokens-per-second, "
            "--first-token or --joules."
        )
    found = find_devices([device or "this"], output.note)
    return DeviceLimits(
        device=with_measurements(found, measurements)[0],
        tokens_per_second=speed,
        first_token_seconds=first_token,
        joules=joules,
    )


def _emit_offer(output: Output, offered: Offer, budget: Budget, artifact: Path) -> None:
    """What a search would look at: the predicted frontier and the first to be measured."""
    best = budget.fitting(offered.candidates)[0]
    fields = {
        "artifact": str(artifact),
        "budget_bytes": budget.memory_bytes,
        "context": offered.context,
        "candidates": len(offered.candidates),
        "best_predicted": _fields(offered, best),
        "frontier": [_fields(offered, candidate) for candidate in offered.frontier],
    }
    rows = [_row(offered, item) for item in _shown(offered.frontier, best)]
    title = f"predicted frontier of {artifact} at {offered.context} tokens of context"
    output.emit(fields, table(title, _COLUMNS, rows), f"would measure {best.address} first")


def _emit_fit(
    output: Output, found: Fit, budget: Budget, artifact: Path, name: str | None, text_name: str
) -> None:
    offered, chosen = found.offer, found.search.chosen
    cut = name or str(chosen.candidate.address)
    measured = {item.candidate: item.loss for item in found.search.verified}
    verified = [
        {**_fields(offered, candidate), **_measured(found, loss), "dense": candidate.is_dense}
        for candidate, loss in measured.items()
    ]
    baseline = found.search.baseline
    fields = {
        "address": f"{artifact}@{cut}",
        "budget_bytes": budget.memory_bytes,
        "context": offered.context,
        "text": text_name,
        "dense_bits_per_byte": found.dense_bits_per_byte,
        "studied": found.studied,
        "predictor_error": offered.predictor_error,
        "chosen": {**_fields(offered, chosen.candidate), **_measured(found, chosen.loss)},
        "verified": verified,
        "baseline": baseline
        and {**_fields(offered, baseline.candidate), **_measured(found, baseline.loss)},
        "frontier": [_fields(offered, candidate) for candidate in offered.frontier],
    }
    shown = _shown(offered.frontier, *measured)
    rows = [
        (*_row(offered, candidate), *_measured_cells(found, candidate, measured))
        for candidate in shown
    ]
    columns = (*_COLUMNS, ">bits/byte", ">measured", "")
    title = (
        f"{artifact}: frontier at {offered.context} tokens of context; full model "
        f"{found.dense_bits_per_byte:.3f} bits/byte on {text_name}"
    )
    output.emit(
        fields,
        table(title, columns, rows),
        f"{artifact}@{cut} fits {format_bytes(budget.memory_bytes)}: "
        f"{_where(offered, chosen.candidate)}",
    )


_COLUMNS = ("subnet", ">memory", ">weights", ">predicted")


def _shown(frontier: Sequence[Candidate], *always: Candidate) -> list[Candidate]:
    """About a dozen candidates of the frontier and `always`, the smallest first."""
    from pliant.search import spread

    shown = dict.fromkeys((*spread(frontier, _FRONTIER_ROWS), *always))
    return sorted(shown, key=lambda candidate: candidate.memory_bytes)


def _row(offered: Offer, candidate: Candidate) -> tuple[str, ...]:
    return (
        str(candidate.address),
        format_bytes(candidate.memory_bytes),
        format_bytes(candidate.subnet.weight_bytes),
        f"{offered.predicted_increase(candidate):+.1%}",
    )


def _measured_cells(
    found: Fit, candidate: Candidate, measured: dict[Candidate, float]
) -> tuple[str, str, str]:
    if candidate not in measured:
        return "", "", ""
    loss = measured[candidate]
    notes = ["chosen"] if candidate == found.search.chosen.candidate else []
    notes += ["mixed bits"] if candidate.is_mixed else []
    notes += ["dense at fewer bits"] if candidate.is_dense else []
    return f"{loss:.3f}", f"{loss / found.dense_bits_per_byte - 1:+.1%}", ", ".join(notes)


def _where(offered: Offer, candidate: Candidate) -> str:
    cost = offered.memory(candidate)
    adapters = f"adapters {format_bytes(cost.adapter_bytes)} + " if cost.adapter_bytes else ""
    return (
        f"{format_bytes(cost.total_bytes)} = weights {format_bytes(cost.weight_bytes)} + "
        f"{adapters}cache {format_bytes(cost.cache_bytes)} ({candidate.subnet.bits.cache}) + "
        f"scratch {format_bytes(cost.scratch_bytes)}"
    )


def _fields(offered: Offer, candidate: Candidate) -> dict[str, Any]:
    cost = offered.memory(candidate)
    return {
        "cut": str(candidate.address),
        "memory_bytes": cost.total_bytes,
        "weight_bytes": cost.weight_bytes,
        "adapter_bytes": cost.adapter_bytes,
        "cache": msgspec.to_builtins(candidate.subnet.bits.cache),
        "cache_bytes": cost.cache_bytes,
        "scratch_bytes": cost.scratch_bytes,
        "predicted_increase": offered.predicted_increase(candidate),
        "mixed_bits": msgspec.to_builtins(candidate.subnet.bits) if candidate.is_mixed else None,
        "predicted_tokens_per_second": candidate.seconds_per_token
        and 1 / candidate.seconds_per_token,
    }


def _measured(found: Fit, loss: float) -> dict[str, float]:
    return {"bits_per_byte": loss, "increase": loss / found.dense_bits_per_byte - 1}
