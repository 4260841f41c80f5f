"""`pliant verify`: an artifact against its own receipts, or an export against its artifact."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
import typer

from pliant.cli.options import Json, Quiet, Threads
from pliant.cli.output import Output, facts
from pliant.cli.target import PeerPython, Type, check_engine, emit_report, verified_export
from pliant.errors import UsageError
from pliant.measurement import Progress, format_bytes

if TYPE_CHECKING:
    from pliant.evaluate import Activations, GoldenCheck, GoldenTextCheck
    from pliant.runtime import TokenModel

Shallow = Annotated[
    bool,
    typer.Option(
        "--shallow", envvar="PLIANT_SHALLOW", help="Structure and sizes only; reads no weights."
    ),
]


Address = Annotated[
    str,
    typer.Argument(metavar="X.pliant", help="An artifact; with --in also X.pliant@d8-w0.75-b3."),
]
In = Annotated[
    Literal["hf", "gguf"] | None,
    typer.Option(
        "--in",
        envvar="PLIANT_IN",
        metavar="TARGET",
        help="Compare with an export in its engine: `hf` (transformers) or `gguf` (llama.cpp).",
    ),
]
At = Annotated[
    Path | None,
    typer.Option(
        "--at",
        envvar="PLIANT_AT",
        metavar="PATH",
        help="The export to compare with (one that is made now and removed).",
    ),
]


Text = Annotated[
    Path | None,
    typer.Option(
        "--text",
        envvar="PLIANT_TEXT",
        metavar="FILE",
        help="With --in: held-out text whose perplexity is compared too.",
    ),
]


def verify(
    context: typer.Context,
    address: Address,
    target: In = None,
    at: At = None,
    kind: Type = None,
    text: Text = None,
    peer_python: PeerPython = None,
    shallow: Shallow = False,
    threads: Threads = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Check an artifact against its own receipts: sizes, hashes, ranges, golden logits and texts.

    With --in an export is compared with the artifact in the engine that it is for: token ids,
    logits, perplexity and greedy tokens of the artifact's golden texts, conversations and prompts.
    """
    from pliant.artifact import split_address

    path, cut = split_address(address)
    output = Output(as_json, quiet)
    if target is not None:
        check_engine(target, peer_python)
        report = verified_export(path, cut, target, at, kind, peer_python, threads, output, text)
        emit_report(report, output, {"artifact": str(path), "address": cut or "full"})
        return
    if cut or _asked(context, "at", "kind", "text", "peer_python"):
        raise UsageError(
            "A cut, --at, --type, --text and --peer-python belong to the comparison with an "
            "export; say --in hf or --in gguf, or give the artifact alone."
        )
    _verify_artifact(path, shallow, threads, output)


def _asked(context: typer.Context, *names: str) -> bool:
    """Whether an option was given in this command; one in the environment is for other commands."""
    sources = (context.get_parameter_source(name) for name in names)
    return any(source is not None and source.name == "COMMANDLINE" for source in sources)


def _verify_artifact(artifact: Path, shallow: bool, threads: int | None, output: Output) -> None:
    from pliant.artifact import verify as verify_files

    with output.progress() as progress:
        found = verify_files(artifact, deep=not shallow, progress=progress)
        golden = [] if shallow else _verify_golden(artifact, threads, progress)
        texts = None if shallow else _verify_texts(artifact, threads, progress)
    fields = {
        "artifact": str(artifact),
        "verified": True,
        "deep": not shallow,
        "files": msgspec.to_builtins(found),
        "golden": msgspec.to_builtins(golden),
        "golden_texts": msgspec.to_builtins(texts),
    }
    read = "structure and sizes" if shallow else "structure, sizes, hashes and values"
    output.emit(
        fields,
        facts(
            [
                ("artifact", artifact),
                ("files", f"{found.files} with {format_bytes(found.num_bytes)}: {read} hold"),
                ("golden logits", _golden_line(golden)),
                ("golden texts", _texts_line(texts)),
            ]
        ),
    )


def _verify_golden(path: Path, threads: int | None, progress: Progress) -> list[GoldenCheck]:
    from pliant.evaluate import verify_golden
    from pliant.runtime.text_engine import open_artifact

    with open_artifact(path) as model:

        @contextmanager
        def open_model(address: str, activations: Activations) -> Iterator[TokenModel]:
            with model.engine(address, threads=threads, activations=activations) as engine:
                yield engine.engine

        kernels = model.engine().engine.kernels
        return verify_golden(path / "golden.json", open_model, kernels, progress)


def _verify_texts(path: Path, threads: int | None, progress: Progress) -> GoldenTextCheck | None:
    """None where the artifact has no golden texts, as those of older builds."""
    from pliant.evaluate import check_golden_texts, read_golden_texts
    from pliant.runtime.text_engine import open_artifact

    with open_artifact(path) as model:
        golden = read_golden_texts(model.artifact)
        if golden is None:
            return None
        with model.engine(threads=threads, activations="float32", cache_type="float32") as engine:
            return check_golden_texts(
                engine.engine, model.tokenizer, golden, model.artifact.num_planes, progress
            )


def _texts_line(texts: GoldenTextCheck | None) -> str:
    if texts is None:
        return "not checked"
    read = f"{texts.texts} texts with {texts.tokens} tokens read alike"
    if not texts.greedy_asked:
        return f"{read}; nothing to write at this number of planes"
    return f"{read}, {texts.greedy} of {texts.greedy_asked} tokens written alike"


def _golden_line(golden: list[GoldenCheck]) -> str:
    if not golden:
        return "not checked"
    prompts = sum(check.prompts for check in golden)
    if all(check.bitwise for check in golden):
        return f"{prompts} prompts, equal in every bit"
    nearest = max(golden, key=lambda check: check.worst / check.tolerance)
    return (
        f"{prompts} prompts, within {nearest.worst:.2%} of their RMS "
        f"({nearest.tolerance:.2%} allowed)"
    )
