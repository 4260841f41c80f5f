"""Arguments and options of `pliant build`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

Source = Annotated[
    str,
    typer.Argument(
        metavar="CHECKPOINT",
        help="A Hugging Face folder, a model id such as org/name, or a GGUF or llama2.c file.",
    ),
]
OutputPath = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        envvar="PLIANT_OUTPUT",
        metavar="X.pliant",
        help="The artifact to write, X.pliant.",
    ),
]
Calibration = Annotated[
    Path | None,
    typer.Option(
        "--calibration",
        envvar="PLIANT_CALIBRATION",
        metavar="FILE",
        help="UTF-8 text to calibrate on (a packaged excerpt of public-domain books).",
    ),
]
Lora = Annotated[
    Path | None,
    typer.Option(
        "--lora",
        envvar="PLIANT_LORA",
        metavar="FOLDER",
        help="A LoRA adapter of PEFT, merged into the weights first.",
    ),
]
CodecName = Annotated[
    str,
    typer.Option(
        "--codec",
        envvar="PLIANT_CODEC",
        metavar="NAME",
        help="`uniform`, good at every number of planes read; or `shift-add`: up to 4 planes of "
        "signs with sums of powers of two, good at the number stored.",
    ),
]
Planes = Annotated[
    int | None,
    typer.Option(
        "--planes",
        envvar="PLIANT_PLANES",
        metavar="N",
        min=1,
        max=8,
        help="Bit-planes stored (as many as the codec has: uniform 8, shift-add 4).",
    ),
]
AveragePlanes = Annotated[
    float | None,
    typer.Option(
        "--average-planes",
        envvar="PLIANT_AVERAGE_PLANES",
        metavar="X",
        min=1.0,
        max=4.0,
        help="For shift-add: give each matrix of a block its own number of planes, X on average, "
        "such as 2.7, the most sensitive ones the most; --planes is then the most of any.",
    ),
]
DataFree = Annotated[
    bool,
    typer.Option(
        "--data-free",
        envvar="PLIANT_DATA_FREE",
        help="Look at no text: order widths by weights, round to nearest, measure nothing. "
        "Minutes where a build takes hours; `fit` cannot choose cuts of it.",
    ),
]
Finer = Annotated[
    str | None,
    typer.Option(
        "--finer",
        envvar="PLIANT_FINER",
        metavar="METHOD",
        help="Offer cuts of half blocks too, chosen by greedy, single-drop or amoeba, and widths "
        "ranked across blocks; only pliant runs these.",
    ),
]
TuneSteps = Annotated[
    int,
    typer.Option(
        "--tune-steps",
        envvar="PLIANT_TUNE_STEPS",
        metavar="N",
        min=0,
        help="Tune every shape first, for N steps of 4,096 tokens; see tune-shapes.",
    ),
]
TuneText = Annotated[
    list[Path] | None,
    typer.Option(
        "--tune-text",
        envvar="PLIANT_TUNE_TEXT",
        metavar="FILE",
        help="UTF-8 text to tune on, or .txt.xz; repeatable.",
    ),
]
TuneMode = Annotated[
    Literal["full", "smol"],
    typer.Option(
        "--tune-mode", envvar="PLIANT_TUNE_MODE", metavar="full|smol",
        help="Tune adapters stored beside the planes, or all weights; see tune-shapes.",
    ),
]  # fmt: skip
RoundingOption = Annotated[
    Literal["reconstruct", "feedback", "nearest"],
    typer.Option(
        "--rounding",
        envvar="PLIANT_ROUNDING",
        metavar="METHOD",
        help="On the calibration text: `feedback`, or best and slow `reconstruct`; or `nearest`.",
    ),
]
MaxKl = Annotated[
    float | None,
    typer.Option(
        "--max-kl",
        envvar="PLIANT_MAX_KL",
        metavar="NATS",
        min=0.0,
        help="Exit 4 where all planes are further from the dense model; what was built is kept.",
    ),
]
MaxBlockError = Annotated[
    float | None,
    typer.Option(
        "--max-block-error",
        envvar="PLIANT_MAX_BLOCK_ERROR",
        metavar="SHARE",
        min=0.0,
        help="Exit 4 where a block's output at all planes is further from the dense one, mean "
        "square over that of what it adds, such as 0.001; what was built is kept.",
    ),
]
Offline = Annotated[
    bool, typer.Option("--offline", envvar="PLIANT_OFFLINE", help="Never ask the network.")
]
Force = Annotated[
    bool, typer.Option("--force", envvar="PLIANT_FORCE", help="Replace an artifact that exists.")
]
