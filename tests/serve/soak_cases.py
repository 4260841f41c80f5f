"""What a soak asks, and an answer in the form in which whole ones and streamed ones are compared.

Lengths are shares of the model's context, so that any model grows its caches through several pages
and moves them a few times. Everything that is drawn has a seed: its text is then that of an idle
server too, however often its cache was given up and computed again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

#: Long enough for a prompt of a whole context of any model that is soaked.
STORY = (
    "Once upon a time there was a little fox who lived in a wood beside a river. Every morning she "
    "went down to the water to drink, and every evening she came home by the old stone bridge. One "
    "day it rained so hard that the river rose above its banks and carried the bridge away. The "
    "fox sat on a hill and looked at the water. She could not swim, and her house was on the other "
    'side. "What shall I do?" she said. A heron who stood in the reeds heard her. "Wait until the '
    'rain is over," said the heron, "and then look for the fallen oak." So the fox waited for two '
    "days and two nights. On the third day the sun came out, and she found the oak that the storm "
    "had thrown across the narrowest place. She walked along its trunk, slowly, one foot behind "
    "the other, and the heron watched her from the reeds. When she was on the other side, she "
    'turned round. "Thank you," she said. "Come and see me when the winter comes; my house is '
    'warm, and there is always something to eat." And the heron came, and they were friends.'
)
CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
_SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "old": {"type": "boolean"}},
    "required": ["name", "old"],
    "additionalProperties": False,
}
_GREEDY, _DRAWN = {"temperature": 0}, {"temperature": 1, "top_p": 0.95}


@dataclass(frozen=True)
class Case:
    """A request of which the answer is known: it depends on nothing but the request."""

    name: str
    path: str
    body: dict[str, Any]

    def content(self, **more: Any) -> bytes:
        """Its body with more fields."""
        return json.dumps({**self.body, **more}).encode()


@dataclass
class Answer:
    """Of every choice the text, why it ended and its scores; and the tokens read and written.

    A tool call counts as text. Places of tokens in the text are left out: a stream counts the
    characters it has shown, a whole answer those of its tokens, and a character may have two.
    """

    texts: dict[int, str] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)
    scores: dict[int, list[Any]] = field(default_factory=dict)
    usage: tuple[int, int] | None = None

    @classmethod
    def of(cls, found: dict[str, Any]) -> Answer:
        """That of a whole answer."""
        answer = cls()
        answer.add(found)
        return answer

    def add(self, found: dict[str, Any]) -> None:
        """Take in a whole answer, or the next object of a stream."""
        for choice in found["choices"]:
            index, part = choice["index"], choice.get("message") or choice.get("delta") or choice
            text = (part.get("text") or part.get("content") or "") + _called(part)
            self.texts[index] = self.texts.get(index, "") + text
            self.scores.setdefault(index, []).extend(_scores(choice.get("logprobs")))
            if choice["finish_reason"] is not None:
                self.reasons[index] = choice["finish_reason"]
        if found.get("usage"):
            usage = found["usage"]
            self.usage = usage["prompt_tokens"], usage["completion_tokens"]

    def begins(self, whole: Answer) -> bool:
        """Whether each of its texts is the beginning of that of a whole answer."""
        return all(whole.texts[place].startswith(text) for place, text in self.texts.items())


def _called(part: dict[str, Any]) -> str:
    """Names and arguments of tool calls, as far as they are there."""
    functions = [call["function"] for call in part.get("tool_calls") or []]
    return "".join(function.get("name", "") + function["arguments"] for function in functions)


def _scores(logprobs: dict[str, Any] | None) -> list[Any]:
    """An entry for each token, in either shape of the API."""
    if logprobs is None:
        return []
    if "content" in logprobs:
        return list(logprobs["content"] or [])
    columns = (logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"])
    return [list(row) for row in zip(*columns, strict=True)]


def make_cases(name: str, cuts: Iterable[str], context: int, story: list[int]) -> Iterator[Case]:
    """Requests of every kind, of the model `name` and of its `cuts`.

    `story` are the tokens of `STORY`, as many as a context or more.
    """
    maker = _Maker(name, context, story)
    yield from maker.completions()
    yield from maker.chats()
    for cut in cuts:
        yield from _Maker(f"{name}@{cut}", context, story).of_a_cut()


def stopped(case: Case, answer: Answer) -> Case:
    """The same request, to be ended by a character of its own text; somewhere behind the middle
    there is one that is not there before, or the one that comes first there ends it earlier.
    """
    text = answer.texts[0]
    plain = [char for char in text[len(text) // 2 :] if char.isascii() and char.isprintable()]
    rarest = min(plain, key=text.count)
    return Case(f"{case.name}, stopped", case.path, {**case.body, "stop": [rarest]})


class _Maker:
    """Cases of one model."""

    def __init__(self, model: str, context: int, story: list[int]) -> None:
        self._model, self._context, self._story = model, context, story

    def completions(self) -> Iterator[Case]:
        """Prompts and texts of all lengths, chosen in all ways."""
        yield self._complete("short", 0, 0.06, 0.1, **_GREEDY)
        yield self._complete("long", 0, 0.05, 0.75, **_GREEDY, ignore_eos=True)
        yield self._complete("of a long prompt", 0, 0.6, 0.12, **_GREEDY, ignore_eos=True)
        yield self._complete("whole context", 7, 0.5, 0.5, **_GREEDY, ignore_eos=True)
        yield self._complete("to its end", 9, 0.04, 0.6, **_GREEDY)
        yield self._complete("drawn", 0, 0.1, 0.5, **_DRAWN, ignore_eos=True, seed=7)
        yield self._complete("drawn of all", 11, 0.05, 0.3, temperature=1, seed=8)
        yield self._complete(
            "penalties", 0, 0.1, 0.4, temperature=0.8, top_k=40, min_p=0.02, presence_penalty=0.5,
            frequency_penalty=0.2, repetition_penalty=1.1, logit_bias={"5": 2}, seed=9,
        )  # fmt: skip
        yield self._complete("choices", 3, 0.2, 0.3, **_DRAWN, ignore_eos=True, n=3, seed=10)
        yield self._complete("scores", 0, 0.1, 0.4, **_GREEDY, ignore_eos=True, logprobs=3)
        yield self._complete("read aloud", 5, 0.5, 0.1, **_DRAWN, echo=True, logprobs=2, seed=11)
        prompts = [self._prompt(13, 0.1), self._prompt(0, 0.3)]
        yield self._case("two prompts", COMPLETION, 0.2, prompt=prompts, **_GREEDY)

    def chats(self) -> Iterator[Case]:
        """Talks, JSON and a tool."""
        talk = [{"role": "user", "content": "Tell me of a fox."}]
        yield self._case("chat", CHAT, 0.3, messages=talk, **_GREEDY)
        reply = {"role": "assistant", "content": "She ran."}
        more = [*talk, reply, {"role": "user", "content": "Why?"}]
        yield self._case("next turn", CHAT, 0.2, messages=more, **_DRAWN, seed=12)
        scored = {"logprobs": True, "top_logprobs": 2, "ignore_eos": True, "seed": 13}
        yield self._case("chat scores", CHAT, 0.3, messages=talk, **_DRAWN, **scored)
        form = {"type": "json_schema", "json_schema": {"name": "fox", "schema": _SCHEMA}}
        drawn = {**_DRAWN, "seed": 14}
        yield self._case("JSON", CHAT, 0.4, messages=talk, response_format=form, **drawn)
        tool = {"type": "function", "function": {"name": "find", "parameters": _SCHEMA}}
        called = {"tools": [tool], "tool_choice": "required"}
        yield self._case("tool", CHAT, 0.4, messages=talk, **called, **drawn)

    def of_a_cut(self) -> Iterator[Case]:
        """What another subnet is asked."""
        yield self._complete("long", 0, 0.05, 0.7, **_GREEDY, ignore_eos=True)
        yield self._complete("of a long prompt", 0, 0.6, 0.1, **_GREEDY)
        yield self._complete("drawn", 3, 0.1, 0.5, **_DRAWN, ignore_eos=True, seed=15)
        yield self._complete("scores", 0, 0.2, 0.3, **_DRAWN, logprobs=1, seed=16)

    def _complete(self, name: str, begin: int, prompt: float, tokens: float, **more: Any) -> Case:
        return self._case(name, COMPLETION, tokens, prompt=self._prompt(begin, prompt), **more)

    def _case(self, name: str, path: str, tokens: float, **more: Any) -> Case:
        body = {"model": self._model, "max_tokens": int(tokens * self._context), **more}
        return Case(f"{self._model}, {name}", path, body)

    def _prompt(self, begin: int, share: float) -> list[int]:
        return self._story[begin : begin + int(share * self._context)]
