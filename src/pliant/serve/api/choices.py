"""Choices of an answer: as they grow in a stream, and as a whole."""

from __future__ import annotations

import time
import uuid
from typing import Any

import msgspec

from pliant.runtime.tokenizer import Tokenizer
from pliant.serve.api.logprobs import chat_logprobs, completion_logprobs
from pliant.serve.api.requests import TextRequest
from pliant.serve.api.tool_calls import CallDelta, ToolCallReader
from pliant.serve.writer import Emission, TokenScore


class Answer:
    """The frame of every object of one request: its id, kind, time and model."""

    def __init__(self, request: TextRequest, model: str) -> None:
        self.request, self.model = request, model
        prefix = "chatcmpl" if request.kind == "chat" else "cmpl"
        self.id = f"{prefix}-{uuid.uuid4().hex}"
        self.created = int(time.time())
        self._before, self._behind = self._around_choices()

    def whole(self, choices: list[dict[str, Any]], usage: dict[str, Any]) -> dict[str, Any]:
        """The object of an answer that is not streamed."""
        name = "chat.completion" if self.request.kind == "chat" else "text_completion"
        return {**self._frame(name), "choices": choices, "usage": usage}

    def chunk(self, choices: list[dict[str, Any]]) -> bytes:
        """One object of a stream as JSON; with `include_usage` all but the last say that usage is
        null.
        """
        return self._before + msgspec.json.encode(choices) + self._behind

    def last(self, usage: dict[str, Any]) -> bytes:
        """The chunk behind the last choice, which only holds the usage."""
        return self._before + b'[],"usage":' + msgspec.json.encode(usage) + b"}"

    def _around_choices(self) -> tuple[bytes, bytes]:
        """What stands before and behind the choices of every chunk: the same in all of a stream."""
        name = "chat.completion.chunk" if self.request.kind == "chat" else "text_completion"
        frame = msgspec.json.encode(self._frame(name))
        behind = b',"usage":null}' if self.request.include_usage else b"}"
        return frame[:-1] + b',"choices":', behind

    def _frame(self, name: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": name,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": None,
        }


class Choice:
    """One text of an answer."""

    def __init__(
        self, request: TextRequest, tokenizer: Tokenizer, index: int, prompt: list[int]
    ) -> None:
        self._request, self._tokenizer, self.index = request, tokenizer, index
        names = [tool["function"]["name"] for tool in request.tools]
        self._calls = ToolCallReader(names, many=request.parallel_calls) if names else None
        #: The calls so far, as they stand in a whole answer.
        self._called: list[dict[str, Any]] = []
        self._texts: list[str] = []
        self._scores: list[TokenScore] = []
        self._offset = 0
        self._reason: str | None = None
        self._echo = tokenizer.decode(prompt, skip_special=False) if request.echo else ""

    def first_delta(self) -> dict[str, Any] | None:
        """What a chat stream begins with; None for completions."""
        if self._request.kind != "chat":
            return None
        return self._chat_chunk({"role": "assistant", "content": ""}, None, None)

    def push(self, event: Emission) -> list[dict[str, Any]]:
        """The entries of `choices` that one emission gives a stream; also kept for `whole`."""
        shown = "" if self._request.max_tokens == 0 else event.text
        scores = list(event.prompt_scores)
        if event.score is not None and self._request.max_tokens != 0:
            scores.append(event.score)
        self._scores += scores
        self._reason = event.finish_reason
        if self._request.kind == "completion":
            return self._push_completion(shown, scores)
        return self._push_chat(shown, scores)

    def whole(self) -> dict[str, Any]:
        """The choice of an answer that is not streamed."""
        text = "".join(self._texts)
        if self._request.kind == "completion":
            logprobs = self._completion_logprobs(self._scores, 0)
            return self._completion_entry(text, logprobs, self._reason)
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if self._calls is not None and self._calls.found:
            message.update(content=text or None, tool_calls=self._called)
        wanted = self._request.options.top_logprobs is not None
        return {
            "index": self.index,
            "message": message,
            "logprobs": chat_logprobs(self._tokenizer, self._scores) if wanted else None,
            "finish_reason": self._chat_reason(),
        }

    def _push_completion(self, text: str, scores: list[TokenScore]) -> list[dict[str, Any]]:
        text, self._echo = self._echo + text, ""
        self._texts.append(text)
        if not text and not scores and self._reason is None:
            return []
        logprobs = self._completion_logprobs(scores, self._offset)
        self._offset += len(text)
        return [self._completion_entry(text, logprobs, self._reason)]

    def _push_chat(self, text: str, scores: list[TokenScore]) -> list[dict[str, Any]]:
        calls: list[CallDelta] = []
        if self._calls is not None:
            text, calls = self._calls.push(text)
            if self._reason is not None:
                text += self._calls.finish()
        self._texts.append(text)
        deltas: list[dict[str, Any]] = [{"content": text}] if text else []
        deltas += map(self._call_delta, calls)
        if not deltas and scores:
            deltas = [{"content": ""}]
        logprobs = chat_logprobs(self._tokenizer, scores) if scores else None
        chunks = [
            self._chat_chunk(delta, logprobs if place == 0 else None, None)
            for place, delta in enumerate(deltas)
        ]
        if self._reason is not None:
            chunks.append(self._chat_chunk({}, None, self._chat_reason()))
        return chunks

    def _call_delta(self, part: CallDelta) -> dict[str, Any]:
        if part.name is not None:
            call = {
                "id": f"call_{uuid.uuid4().hex[:24]}",
                "type": "function",
                "function": {"name": part.name, "arguments": part.arguments},
            }
            self._called.append(call)
            return {"tool_calls": [{"index": part.index, **msgspec.to_builtins(call)}]}
        self._called[part.index]["function"]["arguments"] += part.arguments
        return {"tool_calls": [{"index": part.index, "function": {"arguments": part.arguments}}]}

    def _chat_reason(self) -> str | None:
        called = self._calls is not None and self._calls.found
        return "tool_calls" if called and self._reason == "stop" else self._reason

    def _chat_chunk(
        self, delta: dict[str, Any], logprobs: dict[str, Any] | None, reason: str | None
    ) -> dict[str, Any]:
        return {
            "index": self.index,
            "delta": delta,
            "logprobs": logprobs,
            "finish_reason": reason,
        }

    def _completion_entry(
        self, text: str, logprobs: dict[str, Any] | None, reason: str | None
    ) -> dict[str, Any]:
        return {
            "index": self.index,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": reason,
        }

    def _completion_logprobs(self, scores: list[TokenScore], offset: int) -> dict[str, Any] | None:
        if self._request.options.top_logprobs is None:
            return None
        return completion_logprobs(self._tokenizer, scores, offset)
