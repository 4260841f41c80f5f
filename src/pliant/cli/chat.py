"""`pliant chat`: a conversation, one line of stdin for each message."""

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
    Temperature,
    Threads,
    TopK,
    TopP,
)
from pliant.cli.output import Output
from pliant.measurement import format_bytes, format_seconds

if TYPE_CHECKING:
    from pliant.runtime import Generation
    from pliant.runtime.text_engine import TextEngine

System = Annotated[
    str | None,
    typer.Option(
        "--system", envvar="PLIANT_SYSTEM", metavar="TEXT", help="The system message, if any."
    ),
]


def chat(
    address: Address,
    system: System = None,
    max_tokens: MaxTokens = 400,
    temperature: Temperature = 0.8,
    top_k: TopK = 0,
    top_p: TopP = 0.95,
    min_p: MinP = 0.0,
    repetition_penalty: RepetitionPenalty = 1.0,
    seed: Seed = 0,
    kv_bits: KvBits = None,
    kv_window: KvWindow = None,
    threads: Threads = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Talk to a model: a line is a message, an empty line or the end of input ends the talk.

    The line `/switch d6-w0.75-b3` goes on as another cut of the same artifact.
    """
    from pliant.runtime import SamplingOptions

    output = Output(as_json, quiet)
    options = SamplingOptions(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        max_tokens=max_tokens,
    )
    messages = [{"role": "system", "content": system}] if system else []
    with open_engine(address, threads, kv_bits, kv_window) as engine:
        if engine.tokenizer.chat_template is None:
            output.note("This model has no chat template; it reads plain lines `User: ...`.")
        while said := _next_message(output):
            if said.split()[0] == "/switch":
                _switch(engine, said.removeprefix("/switch").strip(), output)
                continue
            messages.append({"role": "user", "content": said})
            answer = _answer(engine, messages, options, output)
            messages.append({"role": "assistant", "content": answer.text})


def _next_message(output: Output) -> str:
    """The next line of stdin; empty at the end of the talk."""
    if sys.stdin.isatty() and not output.quiet:
        print("> ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip()


def _switch(engine: TextEngine, address: str, output: Output) -> None:
    """Go on as another cut; an address that is none is said, and the talk goes on as it was."""
    from pliant.errors import PliantError

    try:
        made = engine.switch(address)
    except PliantError as error:
        output.note(f"{error} The talk goes on with the cut it had.")
        return
    output.note(
        f"switched to {address or 'the full model'} in {format_seconds(made.seconds)}: "
        f"{format_bytes(made.after.weight_bytes)} of weights, {format_bytes(made.read_bytes)} of "
        "them not read before"
    )


def _answer(
    engine: TextEngine, messages: list[dict[str, str]], options: object, output: Output
) -> Generation:
    """The answer to the talk so far, written as it comes; with --json one object per answer."""
    stream = engine.chat(messages, options)  # type: ignore[arg-type]
    if not output.as_json:
        for piece in stream:
            sys.stdout.write(piece.text)
            sys.stdout.flush()
        sys.stdout.write("\n")
        sys.stdout.flush()
    generation = stream.generation
    if output.as_json:
        output.emit_line(generation_fields(generation))
    output.note(speed_line(generation))
    return generation
