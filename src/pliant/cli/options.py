"""Flags that several commands share, each mirrored by an environment variable `PLIANT_*`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pliant.measurement import parse_bytes, parse_ratio

ArtifactPath = Annotated[
    Path, typer.Argument(metavar="X.pliant", help="An artifact made by `pliant build`.")
]
Address = Annotated[
    str,
    typer.Argument(
        metavar="ADDRESS",
        help="X.pliant, X.pliant@name or X.pliant@d8-w0.75-b3.",
    ),
]
Json = Annotated[
    bool, typer.Option("--json", envvar="PLIANT_JSON", help="Print one JSON object on stdout.")
]
Quiet = Annotated[
    bool,
    typer.Option("--quiet", "-q", envvar="PLIANT_QUIET", help="No progress and notes on stderr."),
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", envvar="PLIANT_DRY_RUN", help="Say what it would do and cost."),
]
Seed = Annotated[
    int,
    typer.Option(
        "--seed", envvar="PLIANT_SEED", metavar="N", help="Seed of everything drawn at random."
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        envvar="PLIANT_THREADS",
        metavar="N",
        min=1,
        help="Threads of the engine (all cores).",
    ),
]
KvBits = Annotated[
    int | None,
    typer.Option(
        "--kv-bits",
        envvar="PLIANT_KV_BITS",
        metavar="N",
        help="Bits of cached keys and values: 32, 16, 8, or 4, 3, 2 behind the last --kv-window "
        "(those of the cut).",
    ),
]
KvWindow = Annotated[
    int | None,
    typer.Option(
        "--kv-window",
        envvar="PLIANT_KV_WINDOW",
        metavar="N",
        help="With 4, 3 or 2 bits, tokens kept in 16: 0 or a multiple of 64 (the cut's, or 64).",
    ),
]
Text = Annotated[
    Path | None,
    typer.Option(
        "--text", envvar="PLIANT_TEXT", metavar="FILE", help="UTF-8 text to measure on, or .txt.xz."
    ),
]
Context = Annotated[
    int | None,
    typer.Option(
        "--context", envvar="PLIANT_CONTEXT", metavar="N", min=1, help="Tokens of context."
    ),
]
Name = Annotated[
    str | None,
    typer.Option(
        "--name", envvar="PLIANT_NAME", metavar="NAME", help="Name under which the subnet is saved."
    ),
]
MaxRam = Annotated[
    int | None,
    typer.Option(
        "--max-ram",
        envvar="PLIANT_MAX_RAM",
        parser=parse_bytes,
        metavar="SIZE",
        help="Most resident memory of the whole job, such as 2GB.",
    ),
]
Memory = Annotated[
    int,
    typer.Option(
        "--memory",
        envvar="PLIANT_MEMORY",
        parser=parse_bytes,
        metavar="SIZE",
        help="Bytes for weights, cache and scratch, such as 6MB.",
    ),
]
MaxLoss = Annotated[
    float | None,
    typer.Option(
        "--max-loss",
        envvar="PLIANT_MAX_LOSS",
        parser=parse_ratio,
        metavar="RATIO",
        help="Most bits per byte lost against the full model, such as +5%.",
    ),
]
Limit = Annotated[
    int | None,
    typer.Option(
        "--limit",
        envvar="PLIANT_LIMIT",
        parser=parse_bytes,
        metavar="SIZE",
        help="Measure on the first SIZE bytes of the text (eval: all, fit: 20kB).",
    ),
]
MaxTokens = Annotated[
    int,
    typer.Option(
        "--max-tokens",
        envvar="PLIANT_MAX_TOKENS",
        metavar="N",
        min=1,
        help="Most tokens generated.",
    ),
]
Temperature = Annotated[
    float,
    typer.Option(
        "--temperature",
        envvar="PLIANT_TEMPERATURE",
        metavar="T",
        min=0.0,
        help="0 is greedy decoding.",
    ),
]
TopK = Annotated[
    int,
    typer.Option(
        "--top-k", envvar="PLIANT_TOP_K", metavar="K", min=0, help="Likeliest kept; 0 is all."
    ),
]
TopP = Annotated[
    float,
    typer.Option(
        "--top-p", envvar="PLIANT_TOP_P", metavar="P", help="Probability mass kept, up to 1 (all)."
    ),
]
MinP = Annotated[
    float,
    typer.Option(
        "--min-p", envvar="PLIANT_MIN_P", metavar="P", help="Least probability, of the largest."
    ),
]
RepetitionPenalty = Annotated[
    float,
    typer.Option(
        "--repetition-penalty",
        envvar="PLIANT_REPETITION_PENALTY",
        metavar="R",
        help="1 is no penalty.",
    ),
]
Stop = Annotated[
    list[str] | None,
    typer.Option(
        "--stop",
        envvar="PLIANT_STOP",
        metavar="TEXT",
        help="Text that ends generation; repeatable.",
    ),
]
Measurements = Annotated[
    list[str] | None,
    typer.Option(
        "--measurements",
        envvar="PLIANT_MEASUREMENTS",
        metavar="[NAME=]FILE",
        help="What `bench --json` wrote on the device (of several: NAME); repeatable.",
    ),
]
