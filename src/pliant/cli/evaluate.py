"""`pliant eval`: how well a subnet predicts a text, alone and against the full model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from pliant.cli.opening import measured_documents
from pliant.cli.options import Address, Json, KvBits, KvWindow, Limit, Quiet, Text, Threads
from pliant.cli.output import Output, facts
from pliant.measurement import format_bytes

if TYPE_CHECKING:
    from pliant.bits.cache import CacheFormat
    from pliant.evaluate import Divergence, TextLoss

Window = Annotated[
    int | None,
    typer.Option(
        "--window",
        envvar="PLIANT_WINDOW",
        metavar="N",
        min=1,
        help="Tokens fed together (the whole context).",
    ),
]
Stride = Annotated[
    int | None,
    typer.Option(
        "--stride",
        envvar="PLIANT_STRIDE",
        metavar="N",
        min=1,
        help="Tokens scored of each window (all).",
    ),
]
NoReference = Annotated[
    bool,
    typer.Option(
        "--no-reference",
        envvar="PLIANT_NO_REFERENCE",
        help="Leave out the comparison with the full model.",
    ),
]


def evaluate(
    address: Address,
    text: Text = None,
    limit: Limit = None,
    window: Window = None,
    stride: Stride = None,
    no_reference: NoReference = False,
    kv_bits: KvBits = None,
    kv_window: KvWindow = None,
    threads: Threads = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Bits per byte and perplexity of a text; KL and top-1 agreement to the full model.

    The text is streamed; documents are separated by lines `<|endoftext|>`. Without --text the
    packaged excerpt is used, which is what artifacts are calibrated on: fine for a look, not for a
    report.
    """
    from pliant.artifact import split_address
    from pliant.evaluate import divergence, evaluate_text
    from pliant.runtime.text_engine import open_artifact

    output = Output(as_json, quiet)
    path, cut = split_address(address)
    with open_artifact(path) as model, output.progress() as progress:
        documents, name = measured_documents(text, limit)
        subnet = model.subnet(cut).with_cache(kv_bits, kv_window)
        engine = model.engine(subnet, threads=threads)
        loss = evaluate_text(
            engine.engine, model.tokenizer, documents, window, stride, progress=progress
        )
        against = None
        if not no_reference:
            full = model.engine("", threads=threads)
            against = divergence(
                engine.engine, full.engine, model.tokenizer, documents, window, progress=progress
            )
    _emit(output, address, name, subnet.weight_bytes, subnet.bits.cache, loss, against)


def _emit(
    output: Output,
    address: str,
    text_name: str,
    weight_bytes: int,
    cache: CacheFormat,
    loss: TextLoss,
    against: Divergence | None,
) -> None:
    fields = {
        "address": address,
        "text": text_name,
        "tokens": loss.tokens,
        "bytes": loss.num_bytes,
        "window": loss.window,
        "stride": loss.stride,
        "weight_bytes": weight_bytes,
        "kv_bits": cache.bits,
        "kv_window": cache.window if cache.is_coded else None,
        "bits_per_byte": loss.bits_per_byte,
        "nats_per_token": loss.nats_per_token,
        "perplexity": loss.perplexity,
        "kl_nats": against and against.mean_nats,
        "top1_agreement": against and against.top1_agreement,
        "divergence": against and msgspec.to_builtins(against),
    }
    lines: list[tuple[str, object]] = [
        ("subnet", f"{address}, weights {format_bytes(weight_bytes)}"),
        ("text", f"{text_name}, {loss.tokens:,} tokens, {format_bytes(loss.num_bytes)}"),
        ("cache", f"{cache}"),
        ("window", f"{loss.window} tokens, stride {loss.stride}"),
        ("bits per byte", f"{loss.bits_per_byte:.4f}"),
        ("perplexity", f"{loss.perplexity:.3f} per token"),
    ]
    if against is not None:
        lines += [
            ("KL to the full model", f"{against.mean_nats:.5f} nats, p99 {against.p99_nats:.4f}"),
            ("top-1 agreement", f"{against.top1_agreement:.2%}"),
        ]
    output.emit(fields, facts(lines))
