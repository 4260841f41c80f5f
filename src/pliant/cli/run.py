"""`pliant run`: generate text from a prompt."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from pliant.cli.opening import generation_fields, open_engine, speed_line
from pliant.cli.options import (
    Address,
    Json,
    KvBits,
    KvWindow,
    MaxTokens,
    MinP,
    Quiet,
    RepetitionPenalty,
    Seed,
    Stop,
    Temperature,
    Threads,
    TopK,
    TopP,
)
from pliant.cli.output import Output
from pliant.errors import GenerationError

if TYPE_CHECKING:
    from pliant.runtime import TextStream

Prompt = Annotated[
    str, typer.Argument(metavar="PROMPT", help="The text to go on from; `-` reads stdin.")
]


def run(
    address: Address,
    prompt: Prompt,
    max_tokens: MaxTokens = 200,
    temperature: Temperature = 0.8,
    top_k: TopK = 0,
    top_p: TopP = 0.95,
    min_p: MinP = 0.0,
    repetition_penalty: RepetitionPenalty = 1.0,
    stop: Stop = None,
    seed: Seed = 0,
    kv_bits: KvBits = None,
    kv_window: KvWindow = None,
    threads: Threads = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Generate text; it is written to stdout as it comes, the speed to stderr."""
    from pliant.runtime import SamplingOptions

    output = Output(as_json, quiet)
    options = SamplingOptions(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        stop=tuple(stop or ()),
        seed=seed,
        max_tokens=max_tokens,
    )
    text = readable_prompt(sys.stdin.buffer.read() if prompt == "-" else prompt)
    with open_engine(address, threads, kv_bits, kv_window) as engine:
        stream = engine.stream(text, options)
        if not as_json:
            write_pieces(text, stream)
        generation = stream.generation
    if as_json:
        output.emit({"address": address, "prompt": text, **generation_fields(generation)})
    output.note(speed_line(generation))


def write_pieces(prompt: str, stream: TextStream) -> None:
    """Write the prompt and what follows to stdout as it comes, then a line end."""
    sys.stdout.write(prompt)
    for piece in stream:
        sys.stdout.write(piece.text)
        sys.stdout.flush()
    sys.stdout.write("\n")
    sys.stdout.flush()


def readable_prompt(prompt: str | bytes) -> str:
    """The prompt as text; `GenerationError` where its bytes are not UTF-8 or there are none."""
    # Bytes of the command line that are not UTF-8 arrive as lone surrogates.
    raw = prompt.encode("utf-8", "surrogateescape") if isinstance(prompt, str) else prompt
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise GenerationError(
            f"The prompt is not UTF-8: byte {raw[error.start]:#04x} at offset {error.start}; "
            "write it in UTF-8."
        ) from error
    if not text:
        raise GenerationError("The prompt is empty; give at least one character to go on from.")
    return text
