"""The official client of the OpenAI API against a live server."""

from __future__ import annotations

import enum
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import openai
import pydantic
import pytest

from pliant.runtime import Chunk, SamplingOptions

MESSAGES: Any = [{"role": "user", "content": "Tell me of the fox."}]
CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}, "days": {"enum": [1, 2]}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS: Any = [
    {"type": "function", "function": {"name": "weather", "parameters": CITY}},
    {"type": "function", "function": {"name": "trains", "parameters": CITY}},
]


def test_a_completion_is_what_the_bare_engine_writes(live: Any) -> None:
    with live.model.engine("b4", threads=1) as engine:
        expected = engine.generate("The fox", max_tokens=12).text
    answer = live.client().completions.create(
        model="tiny@b4", prompt="The fox", max_tokens=12, temperature=0
    )
    assert answer.choices[0].text == expected
    assert answer.model == "tiny@b4"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (7, 12)


def test_a_sampled_text_depends_on_its_seed_alone(live: Any) -> None:
    """Alone, in a crowd, as a choice of another request, and in the bare engine."""

    def write(seed: int) -> str:
        return str(
            live.client()
            .completions.create(model="tiny", prompt="ab", max_tokens=20, seed=seed)
            .choices[0]
            .text
        )

    alone = [write(seed) for seed in range(6)]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(write, range(6))) == alone
    together = live.client().completions.create(
        model="tiny", prompt="ab", max_tokens=20, seed=0, n=6
    )
    assert [choice.text for choice in together.choices] == alone
    with live.model.engine(threads=1) as engine:
        options = SamplingOptions(temperature=1, seed=3, max_tokens=20)
        assert engine.generate("ab", options).text == alone[3]


def test_a_streamed_chat(live: Any) -> None:
    client = live.client()
    asked: Any = {"model": "tiny", "messages": MESSAGES, "max_tokens": 10, "temperature": 0}
    whole = client.chat.completions.create(**asked)
    chunks = list(
        client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]][-1] == "length"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 10
    assert all(chunk.usage is None for chunk in chunks[:-1])
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
    assert text == whole.choices[0].message.content


def test_the_bytes_of_a_stream(live: Any) -> None:
    with live.http.stream(
        "POST", "/v1/completions", json={"prompt": "a", "max_tokens": 3, "stream": True}
    ) as response:
        lines = list(response.iter_lines())
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert lines[-2:] == ["data: [DONE]", ""]
    assert all(line.startswith("data: ") for line in lines[::2])
    assert json.loads(lines[0].removeprefix("data: "))["object"] == "text_completion"


def test_choices_of_a_stream_keep_apart(live: Any) -> None:
    asked: Any = {"model": "tiny", "prompt": ["ab", "cd"], "max_tokens": 6, "n": 2, "seed": 5}
    whole = live.client().completions.create(**asked)
    texts = dict.fromkeys(range(4), "")
    for chunk in live.client().completions.create(**asked, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == {choice.index: choice.text for choice in whole.choices}


def test_echo_scores_a_prompt_as_the_engine_does(live: Any) -> None:
    """What evaluation programs ask for: token ids in, log-probabilities of each out."""
    prompt = live.model.tokenizer.encode("A fox, a hen.")
    with live.model.engine(threads=1) as engine:
        logits = engine.engine.forward_chunk(
            [Chunk(np.array(prompt), engine.engine.new_cache(64), logits="all")]
        )[0].astype(np.float64)
    expected = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    answer = live.client().completions.create(
        model="tiny", prompt=prompt, max_tokens=0, echo=True, logprobs=3
    )
    found = answer.choices[0].logprobs
    assert answer.choices[0].text == "A fox, a hen."
    assert found.token_logprobs[0] is None and found.top_logprobs[0] is None
    scored = [expected[place, token] for place, token in enumerate(prompt[1:])]
    np.testing.assert_allclose(found.token_logprobs[1:], scored, atol=1e-9)
    assert found.text_offset == list(range(len(prompt)))
    for row, top in zip(expected, found.top_logprobs[1:], strict=False):
        assert 3 <= len(top) <= 4
        assert max(top.values()) == pytest.approx(row.max())


def test_log_probabilities_of_none_but_the_chosen(live: Any) -> None:
    """The chosen token is always among them, so 0 of the likeliest are one."""
    answer = live.client().completions.create(model="tiny", prompt="ab", max_tokens=3, logprobs=0)
    found = answer.choices[0].logprobs
    for token, score, top in zip(
        found.tokens, found.token_logprobs, found.top_logprobs, strict=True
    ):
        assert top == {token: score}


def test_logprobs_of_a_chat(live: Any) -> None:
    answer = live.client().chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=4, logprobs=True, top_logprobs=2, temperature=0
    )
    content = answer.choices[0].logprobs.content
    assert len(content) == 4
    for entry in content:
        assert entry.logprob == entry.top_logprobs[0].logprob >= entry.top_logprobs[1].logprob
        assert bytes(entry.bytes).decode("utf-8", "replace") == entry.token


def test_a_json_schema_is_kept(live: Any) -> None:
    schema: Any = {"type": "json_schema", "json_schema": {"name": "trip", "schema": CITY}}
    for seed in range(3):
        answer = live.client().chat.completions.create(
            model="tiny", messages=MESSAGES, response_format=schema, seed=seed, max_tokens=60
        )
        found = json.loads(answer.choices[0].message.content)
        assert found["city"] in ("Paris", "Rome") and found["days"] in (1, 2)
        assert answer.choices[0].finish_reason == "stop"


def test_any_json_object(live: Any) -> None:
    answer = live.client().chat.completions.create(
        model="tiny", messages=MESSAGES, response_format={"type": "json_object"}, max_tokens=8
    )
    assert answer.choices[0].message.content.startswith("{")


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "trains"}}]
)
def test_tools_are_called_with_arguments_of_their_schema(live: Any, choice: Any) -> None:
    asked: Any = {
        "model": "tiny", "messages": MESSAGES, "tools": TOOLS, "tool_choice": choice,
        "max_tokens": 90, "seed": 1,
    }  # fmt: skip
    answer = live.client().chat.completions.create(**asked).choices[0]
    (call,) = answer.message.tool_calls
    assert answer.finish_reason == "tool_calls" and answer.message.content is None
    assert call.function.name in (["weather", "trains"] if choice == "required" else ["trains"])
    assert json.loads(call.function.arguments)["days"] in (1, 2)
    deltas = [
        part
        for chunk in live.client().chat.completions.create(**asked, stream=True)
        for part in chunk.choices[0].delta.tool_calls or []
    ]
    assert {part.index for part in deltas} == {0}
    assert deltas[0].function.name == call.function.name and deltas[0].id
    assert "".join(part.function.arguments for part in deltas) == call.function.arguments


class Town(enum.StrEnum):
    """As a program declares what it wants."""

    PARIS = "Paris"
    ROME = "Rome"


class Place(pydantic.BaseModel):
    town: Town


class Trip(pydantic.BaseModel):
    start: Place
    end: Place


def test_classes_of_a_program_as_schema_and_as_tool(live: Any) -> None:
    """Their schemas refer to parts of themselves; the client checks what comes, and every event."""
    chat = live.client().chat.completions
    asked: Any = {"model": "tiny", "messages": MESSAGES, "max_tokens": 80, "seed": 1}
    whole = chat.parse(**asked, response_format=Trip).choices[0].message
    assert whole.parsed.start.town in Town
    tools: Any = {"tools": [openai.pydantic_function_tool(Trip, name="book"),
                            openai.pydantic_function_tool(Place, name="stay")],
                  "tool_choice": {"type": "function", "function": {"name": "book"}}}  # fmt: skip
    (call,) = chat.parse(**asked, **tools).choices[0].message.tool_calls
    assert call.function.parsed_arguments.end.town in Town
    with chat.stream(**asked, **tools) as stream:
        kinds = {event.type for event in stream}
        answer = stream.get_final_completion().choices[0]
    assert "tool_calls.function.arguments.done" in kinds and answer.finish_reason == "tool_calls"
    assert answer.message.tool_calls[0].function.parsed_arguments == call.function.parsed_arguments
    with chat.stream(**asked, response_format=Trip, logprobs=True, top_logprobs=1) as stream:
        kinds = {event.type for event in stream}
        answer = stream.get_final_completion().choices[0]
    assert {"content.done", "logprobs.content.done"} <= kinds
    assert answer.message.parsed == whole.parsed


def test_a_text_of_a_model_with_tools_that_calls_none(live: Any) -> None:
    answer = live.client().chat.completions.create(
        model="tiny", messages=MESSAGES, tools=TOOLS, max_tokens=6, temperature=0
    )
    assert answer.choices[0].message.tool_calls is None
    assert answer.choices[0].message.content


def test_stop_bias_and_penalties(live: Any) -> None:
    client = live.client()
    z = live.model.tokenizer.encode("z")[0]
    asked: Any = {"model": "tiny", "prompt": "ab", "max_tokens": 8, "temperature": 0}
    forced = client.completions.create(**asked, logit_bias={str(z): 100})
    assert forced.choices[0].text == "z" * 8
    stopped = client.completions.create(**asked, logit_bias={str(z): 100}, stop=["zzz"])
    assert (stopped.choices[0].text, stopped.choices[0].finish_reason) == ("", "stop")
    letters = {str(live.model.tokenizer.encode(letter)[0]): 100 for letter in "cdefghijklm"}
    varied = client.completions.create(
        **asked, logit_bias=letters, extra_body={"repetition_penalty": 100}
    )
    assert len(set(varied.choices[0].text)) == 8
    few = client.completions.create(**{**asked, "temperature": 1}, extra_body={"top_k": 1})
    assert few.choices[0].text == client.completions.create(**asked).choices[0].text


def test_kept_prefixes_show_in_usage(serve: Any) -> None:
    own = serve()
    prompt = "A long beginning that two requests have in common: "
    for place, ending in enumerate(("one", "two")):
        answer = own.client().completions.create(model="tiny", prompt=prompt + ending, max_tokens=2)
        reused = answer.usage.prompt_tokens_details.cached_tokens
        assert reused == (len(prompt) if place else 0)


def test_models_and_their_errors(live: Any) -> None:
    client = live.client()
    names = [model.id for model in client.models.list()]
    assert names[0] == "tiny" and "tiny@auto" in names
    assert client.models.retrieve("tiny@b2").id == "tiny@b2"
    for name in ("other", "tiny@nonsense", "tiny@d99"):
        with pytest.raises(openai.NotFoundError, match="tiny@auto") as error:
            client.completions.create(model=name, prompt="a")
        assert error.value.code == "model_not_found"


def test_a_context_is_never_cut_silently(live: Any) -> None:
    for fields in ({"prompt": "a" * 129}, {"prompt": "a" * 100, "max_tokens": 30}):
        with pytest.raises(openai.BadRequestError) as error:
            live.client().completions.create(model="tiny", **fields)
        assert error.value.code == "context_length_exceeded"
    fits = live.client().completions.create(model="tiny", prompt="a" * 100, max_tokens=29)
    assert fits.usage.prompt_tokens == 100


def test_unknown_parameters_are_named_in_a_warning(live: Any) -> None:
    response = live.post("/v1/completions", prompt="a", max_tokens=1, colour="é", user="me")
    assert response.status_code == 200
    assert response.headers["warning"] == '299 pliant "ignored: colour"'
    assert "warning" not in live.post("/v1/completions", prompt="a", max_tokens=1).headers
