"""`read_record`: what a streamed answer of any server of the OpenAI API says of its request."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from pliant.load.arrivals import Arrival
from pliant.load.record import RequestRecord, token_times
from pliant.load.wire import Reply

#: Where servers put what a model writes besides its answer; it takes as long to write.
_THOUGHTS = ("content", "reasoning_content", "reasoning")
#: Characters of a server's own words in an error.
_MOST_SAID = 200


def read_record(reply: Reply, arrival: Arrival, due: int) -> RequestRecord:
    """The times of the tokens of an answer, or why there are none."""

    def failed(error: str) -> RequestRecord:
        return RequestRecord(arrived=due, words=arrival.words, error=error)

    if reply.status != 200:
        said = _message(b"".join(piece for _, piece in reply.pieces))
        return failed(f"status {reply.status}" + (f": {said}" if said else ""))
    pieces: list[tuple[int, int]] = []
    usage: dict[str, Any] = {}
    is_stream = False
    for came, event in _events(reply):
        is_stream = True
        if event.get("error"):
            return failed(_error_text(event["error"]))
        usage = event.get("usage") or usage
        written = sum(map(_written, event.get("choices") or []))
        if written:
            pieces.append((came, written))
    if not is_stream:
        return failed("the answer is no stream of events")
    tokens = usage.get("completion_tokens")
    return RequestRecord(
        arrived=due,
        times=token_times(pieces, len(pieces) if tokens is None else int(tokens)),
        prompt_tokens=int(usage.get("prompt_tokens") or 0),
        words=arrival.words,
        counted=tokens is not None,
    )


def _written(choice: Mapping[str, Any]) -> int:
    """Characters that one choice of an event adds: text, thoughts, or arguments of a call."""
    delta = choice.get("delta") or {}
    texts = [choice.get("text"), *(delta.get(name) for name in _THOUGHTS)]
    for call in delta.get("tool_calls") or []:
        function = call.get("function") or {}
        texts += [function.get("name"), function.get("arguments")]
    return sum(len(text) for text in texts if text)


def _events(reply: Reply) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a stream and when they came, up to its end."""
    for came, line in reply.lines():
        if not line.startswith(b"data:"):
            continue
        data = line.removeprefix(b"data:").strip()
        if data == b"[DONE]":
            return
        yield came, msgspec.json.decode(data, type=dict[str, Any])


def _message(body: bytes) -> str:
    """What a server says of its refusal: the message of an error object, or its first line."""
    try:
        found = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        lines = body.decode("utf-8", "replace").strip().splitlines()
        return lines[0][:_MOST_SAID] if lines else ""
    return _error_text(found.get("error", found) if isinstance(found, dict) else found)


def _error_text(error: Any) -> str:
    if isinstance(error, dict):
        error = error.get("message") or error.get("detail") or error
    return str(error)[:_MOST_SAID]
