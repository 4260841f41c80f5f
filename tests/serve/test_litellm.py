"""litellm, as the official client of many programs, against a live server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

MESSAGES = [{"role": "user", "content": "Tell me of the fox."}]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}]


@pytest.fixture(scope="module")
def litellm() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        # Its table of prices would be asked for over the network when it is imported.
        patch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
        module = pytest.importorskip("litellm", reason="pip install 'pliant[conformance]'")
        patch.setattr(module, "num_retries", 0)
        yield module


@pytest.fixture
def asked(live: Any) -> dict[str, Any]:
    return {
        "model": "openai/tiny",
        "api_base": f"{live.url}/v1",
        "api_key": "none",
        "temperature": 0,
        "max_tokens": 12,
    }


def test_a_chat_whole_and_streamed(litellm: Any, live: Any, asked: dict[str, Any]) -> None:
    whole = litellm.completion(messages=MESSAGES, **asked)
    expected = live.post(
        "/v1/chat/completions", messages=MESSAGES, temperature=0, max_tokens=12
    ).json()["choices"][0]["message"]["content"]
    assert whole.choices[0].message.content == expected
    assert whole.usage.completion_tokens == 12
    chunks = list(
        litellm.completion(
            messages=MESSAGES, stream=True, stream_options={"include_usage": True}, **asked
        )
    )
    built = litellm.stream_chunk_builder(chunks, messages=MESSAGES)
    assert built.choices[0].message.content == expected
    assert built.choices[0].finish_reason == whole.choices[0].finish_reason == "length"
    assert built.usage.completion_tokens == 12


def test_a_completion(litellm: Any, live: Any, asked: dict[str, Any]) -> None:
    found = litellm.text_completion(
        prompt="The fox", **{**asked, "model": "text-completion-openai/tiny"}
    )
    expected = live.post("/v1/completions", prompt="The fox", temperature=0, max_tokens=12).json()
    assert found.choices[0].text == expected["choices"][0]["text"]


def test_log_probabilities(litellm: Any, asked: dict[str, Any]) -> None:
    answer = litellm.completion(messages=MESSAGES, logprobs=True, top_logprobs=2, **asked)
    content = answer.choices[0].logprobs["content"]
    assert len(content) == 12
    assert all(entry["logprob"] == entry["top_logprobs"][0].logprob for entry in content)


def test_tools_and_schemas(litellm: Any, asked: dict[str, Any]) -> None:
    more = {**asked, "max_tokens": 90}
    answer = litellm.completion(
        messages=MESSAGES, tools=TOOLS, tool_choice="required", **more
    ).choices[0]
    (call,) = answer.message.tool_calls
    assert answer.finish_reason == "tool_calls" and call.function.name == "weather"
    assert json.loads(call.function.arguments)["city"] in ("Paris", "Rome")
    wanted = {"type": "json_schema", "json_schema": {"name": "trip", "schema": SCHEMA}}
    text = litellm.completion(messages=MESSAGES, response_format=wanted, **more)
    assert json.loads(text.choices[0].message.content)["city"] in ("Paris", "Rome")


def test_errors_are_of_their_kind(litellm: Any, asked: dict[str, Any]) -> None:
    with pytest.raises(litellm.NotFoundError, match="tiny@auto"):
        litellm.completion(messages=MESSAGES, **{**asked, "model": "openai/nobody"})
    # It knows a context that is too short by the code of the error.
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.completion(messages=[{"role": "user", "content": "a" * 200}], **asked)
    with pytest.raises(litellm.BadRequestError):
        litellm.completion(messages=MESSAGES, **{**asked, "temperature": -3})
