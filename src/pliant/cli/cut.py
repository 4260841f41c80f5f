"""`pliant cut`: write down a subnet of an artifact."""

from __future__ import annotations

import time
from typing import Annotated

import msgspec
import typer

from pliant.cli.options import ArtifactPath, DryRun, Json, KvBits, KvWindow, Name, Quiet
from pliant.cli.output import Output, facts
from pliant.measurement import format_bytes, format_seconds

Depth = Annotated[
    int | None,
    typer.Option("--depth", envvar="PLIANT_DEPTH", metavar="N", min=1, help="Blocks kept (all)."),
]
Width = Annotated[
    float,
    typer.Option(
        "--width", envvar="PLIANT_WIDTH", metavar="RATIO", help="Ratio of groups and neurons kept."
    ),
]
Bits = Annotated[
    int | None,
    typer.Option(
        "--bits", envvar="PLIANT_BITS", metavar="N", min=1, help="Planes read of the blocks (all)."
    ),
]
VocabularyBits = Annotated[
    int | None,
    typer.Option(
        "--vocabulary-bits",
        envvar="PLIANT_VOCABULARY_BITS",
        metavar="N",
        min=1,
        help="Planes read of embedding and head (those of the blocks, at least 4).",
    ),
]


def cut(
    artifact: ArtifactPath,
    depth: Depth = None,
    width: Width = 1.0,
    bits: Bits = None,
    vocabulary_bits: VocabularyBits = None,
    kv_bits: KvBits = None,
    kv_window: KvWindow = None,
    name: Name = None,
    dry_run: DryRun = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Cut a subnet: writes only a small JSON into the artifact, no weights are copied."""
    from pliant.artifact import Artifact
    from pliant.subnet import CutAddress

    output = Output(as_json, quiet)
    opened = Artifact.open(artifact)
    address = str(CutAddress(depth, width, bits, vocabulary_bits, cache_bits=kv_bits))
    start = time.perf_counter()
    subnet = opened.subnet(address).with_cache(window=kv_window)
    # A saved cut may not be named like an address, so that an address always means the same.
    usual = subnet == opened.subnet(address)
    saved_as = name or f"cut-{address or 'full'}{'' if usual else f'-window{kv_window}'}"
    if not dry_run:
        opened.save_subnet(saved_as, subnet)
    seconds = time.perf_counter() - start
    output.emit(
        {
            "address": f"{artifact}@{saved_as}",
            "saved": not dry_run,
            "blocks": list(subnet.shape.blocks),
            "parameters": subnet.num_parameters,
            "weight_bytes": subnet.weight_bytes,
            "effective_bits": subnet.effective_bits,
            "cache": msgspec.to_builtins(subnet.bits.cache),
            "seconds": seconds,
        },
        facts(
            [
                ("address", f"{artifact}@{saved_as}" + (" (not saved)" if dry_run else "")),
                ("blocks kept", " ".join(map(str, subnet.shape.blocks))),
                ("parameters", f"{subnet.num_parameters:,}"),
                ("weights", format_bytes(subnet.weight_bytes)),
                ("effective bits", f"{subnet.effective_bits:.2f} per parameter"),
                ("cache", subnet.bits.cache),
                ("time taken", format_seconds(seconds)),
            ]
        ),
    )
