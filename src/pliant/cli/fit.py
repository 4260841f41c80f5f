"""`pliant fit`: the best subnet within a budget."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pliant.cli.opening import measured_documents
from pliant.cli.options import (
    ArtifactPath,
    Context,
    DryRun,
    Json,
    Limit,
    MaxLoss,
    Memory,
    Name,
    Quiet,
    Text,
    Threads,
)
from pliant.cli.output import Output, table
from pliant.measurement import format_bytes

if TYPE_CHECKING:
    from pliant.recipes.fit import Fit, Offer
    from pliant.search import Budget, Candidate

#: UTF-8 bytes measured on unless --limit says otherwise: enough to tell candidates apart.
_TEXT_BYTES = 20_000
#: Rows of the predicted frontier that are printed; --json has all of it.
_FRONTIER_ROWS = 12

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


def fit(
    artifact: ArtifactPath,
    memory: Memory,
    max_loss: MaxLoss = None,
    context: Context = None,
    text: Text = None,
    limit: Limit = None,
    verify: Verify = 3,
    name: Name = None,
    threads: Threads = None,
    dry_run: DryRun = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Find the subnet with the lowest measured loss within a memory budget.

    Every depth, width and number of planes is predicted from the sensitivities in the artifact; the
    best are measured with the engine, beside the dense shape at fewer bits. With --name the chosen
    one is saved as X.pliant@NAME.
    """
    from pliant.recipes.fit import fit as fit_artifact
    from pliant.recipes.fit import offer
    from pliant.runtime.text_engine import open_artifact
    from pliant.search import Budget

    output = Output(as_json, quiet)
    budget = Budget(memory_bytes=memory, max_loss_increase=max_loss)
    with open_artifact(artifact) as model:
        if dry_run:
            _emit_offer(output, offer(model, context), budget, artifact)
            return
        documents, text_name = measured_documents(text, limit or _TEXT_BYTES)
        with output.progress() as progress:
            found = fit_artifact(
                model, budget, documents, context=context, verify=verify, threads=threads,
                progress=progress,
            )  # fmt: skip
        if name is not None:
            model.artifact.save_subnet(name, found.search.chosen.candidate.subnet)
    _emit_fit(output, found, budget, artifact, name, text_name)


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
    notes += ["dense at fewer bits"] if candidate.is_dense else []
    return f"{loss:.3f}", f"{loss / found.dense_bits_per_byte - 1:+.1%}", ", ".join(notes)


def _where(offered: Offer, candidate: Candidate) -> str:
    cost = offered.memory(candidate)
    adapters = f"adapters {format_bytes(cost.adapter_bytes)} + " if cost.adapter_bytes else ""
    return (
        f"{format_bytes(cost.total_bytes)} = weights {format_bytes(cost.weight_bytes)} + "
        f"{adapters}cache "
        f"{format_bytes(cost.cache_bytes)} + scratch {format_bytes(cost.scratch_bytes)}"
    )


def _fields(offered: Offer, candidate: Candidate) -> dict[str, Any]:
    cost = offered.memory(candidate)
    return {
        "cut": str(candidate.address),
        "memory_bytes": cost.total_bytes,
        "weight_bytes": cost.weight_bytes,
        "adapter_bytes": cost.adapter_bytes,
        "cache_bytes": cost.cache_bytes,
        "scratch_bytes": cost.scratch_bytes,
        "predicted_increase": offered.predicted_increase(candidate),
    }


def _measured(found: Fit, loss: float) -> dict[str, float]:
    return {"bits_per_byte": loss, "increase": loss / found.dense_bits_per_byte - 1}
