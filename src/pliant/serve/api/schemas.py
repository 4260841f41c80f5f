"""`named`: JSON schemas of bodies and answers, as the readers and writers beside them have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pliant.serve.api.messages import MAX_MESSAGES, MAX_TOOLS, ROLES
from pliant.serve.api.requests import (
    MAX_CHOICES,
    MAX_PROMPTS,
    MAX_STOPS,
    MAX_TOKENS,
    MAX_TOP_LOGPROBS,
)

Schema = dict[str, Any]

#: Tokens that `/detokenize` takes at once.
MAX_DETOKENIZED = 1_000_000
_TOKEN: Schema = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
_TEXT: Schema = {"type": "string"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_OBJECT: Schema = {"type": "object"}


def named() -> dict[str, Schema]:
    """Every schema of the interface by its name."""
    return {
        "CompletionRequest": _completion_request(),
        "ChatRequest": _chat_request(),
        "Message": _message(),
        "Tool": _tool(),
        "Tokenize": {"oneOf": [*map(_tokenize, ("prompt", "content")), _tokenize_chat()]},
        "Detokenize": _request(
            {"tokens": _list(_TOKEN, most=MAX_DETOKENIZED), "model": _TEXT}, required=["tokens"]
        ),
        "CompletionAnswer": _answer("text_completion", _completion_choice()),
        "ChatAnswer": _answer("chat.completion", _chat_choice()),
        "Usage": _usage(),
        "Tokens": _tokens(),
        "Detokenized": _all(prompt=_TEXT, content=_TEXT),
        "TokenizerInfo": _all(
            **{f"{name}_token": _or_null(_TEXT) for name in ("bos", "eos", "pad", "unk")},
            chat_template=_or_null(_TEXT),
            max_model_len=_COUNT,
        ),
        "Model": _model(),
        "ModelList": _all(object={"const": "list"}, data=_list(_ref("Model"))),
        "SubnetList": _subnet_list(),
        "State": _all(status=_TEXT),
        "Error": _error(),
    }


def _completion_request() -> Schema:
    ids = _list(_TOKEN, least=1)
    prompt = {
        "anyOf": [
            _TEXT,
            ids,
            _list({"anyOf": [_TEXT, ids]}, least=1, most=MAX_PROMPTS),
        ]
    }
    own = {
        "prompt": prompt,
        "max_tokens": _whole(0, MAX_TOKENS),
        "echo": _flag(),
        "logprobs": _whole(0, MAX_TOP_LOGPROBS),
        "best_of": _whole(1, MAX_CHOICES),
        "suffix": {"const": ""},
    }
    return _request(own | _common())


def _tokenize(name: str) -> Schema:
    own = {name: _TEXT, "add_special_tokens": _flag()}
    return _one_of_three(own, name)


def _tokenize_chat() -> Schema:
    own = {
        "messages": _list(_ref("Message"), least=1, most=MAX_MESSAGES),
        "add_generation_prompt": _flag(),
        "tools": _list(_ref("Tool"), most=MAX_TOOLS),
        "tool_choice": _tool_choice(),
        "chat_template_kwargs": _OBJECT,
    }
    return _one_of_three(own, "messages")


def _one_of_three(own: Mapping[str, Schema], name: str) -> Schema:
    """A body of `/tokenize` with the field `name` and neither of the other two."""
    others: dict[str, Schema] = {
        other: {"type": "null"} for other in ("prompt", "content", "messages") if other != name
    }
    common = {"model": _TEXT, "return_token_strs": _flag()}
    found = _request({**own, **common}, required=[name])
    found["properties"].update(others)
    return found


def _tokens() -> Schema:
    found = _all(tokens=_list(_TOKEN), count=_COUNT, max_model_len=_COUNT)
    found["properties"]["token_strs"] = _list(_TEXT)
    return found


def _chat_request() -> Schema:
    schema = _all(schema=_OBJECT)
    kind = {"type": "string", "enum": ["text", "json_object", "json_schema"]}
    own = {
        "messages": _list(_ref("Message"), least=1, most=MAX_MESSAGES),
        "max_tokens": _whole(1, MAX_TOKENS),
        "max_completion_tokens": _whole(1, MAX_TOKENS),
        "logprobs": _flag(),
        "top_logprobs": _whole(0, MAX_TOP_LOGPROBS),
        "tools": _list(_ref("Tool"), most=MAX_TOOLS),
        "tool_choice": _tool_choice(),
        "parallel_tool_calls": _flag(),
        "response_format": {
            "type": "object",
            "properties": {"type": _or_null(kind), "json_schema": _or_null(schema)},
        },
        "chat_template_kwargs": _OBJECT,
    }
    return _request(own | _common(), required=["messages"])


def _tool_choice() -> Schema:
    forced = _all(function=_all(name=_TEXT))
    listed = _all(mode={"enum": ["auto", "required"]}, tools=_list(forced, least=1))
    allowed = _all(type={"const": "allowed_tools"}, allowed_tools=listed)
    return {"anyOf": [{"enum": ["auto", "none", "required"]}, forced, allowed]}


def _common() -> dict[str, Schema]:
    """Fields of both kinds of request."""
    stop = {"type": "string", "minLength": 1}
    wishes = {
        "type": "object",
        "properties": {
            "timeout_seconds": _or_null(_number(0, 86_400)),
            "smallest": _or_null(_TEXT),
            "prefer": _or_null({"type": "string", "enum": ["quality", "latency"]}),
        },
        "additionalProperties": False,
    }
    usage = {"type": "object", "properties": {"include_usage": _or_null(_flag())}}
    return {
        "model": _TEXT,
        "n": _whole(1, MAX_CHOICES),
        "stream": _flag(),
        "stream_options": usage,
        "stop": {"anyOf": [stop, _list(stop, most=MAX_STOPS)]},
        "seed": _whole(-(2**63), 2**64 - 1),
        "temperature": _number(0, 100),
        "top_k": _whole(-1, MAX_TOKENS),
        "top_p": _number(0, 1),
        "min_p": _number(0, 1),
        "repetition_penalty": _number(0.01, 100),
        "presence_penalty": _number(-2, 2),
        "frequency_penalty": _number(-2, 2),
        "logit_bias": {
            "type": "object",
            "propertyNames": {"pattern": "^[0-9]{1,10}$"},
            "additionalProperties": _number(-100, 100),
        },
        "ignore_eos": _flag(),
        "pliant": wishes,
    }


def _message() -> Schema:
    part = {
        "type": "object",
        "properties": {"type": {"const": "text"}, "text": _TEXT},
        "required": ["text"],
    }
    content = {"anyOf": [_TEXT, _list(part)]}
    arguments = _or_null({"anyOf": [_TEXT, _OBJECT]})
    called = {"name": _TEXT, "arguments": arguments}
    function = {"type": "object", "properties": called, "required": ["name"]}
    texts = ("name", "tool_call_id", "reasoning_content")
    return {
        "type": "object",
        "properties": {
            "role": {"type": "string", "enum": sorted(ROLES)},
            "content": content,
            "tool_calls": _or_null(_list(_all(function=function))),
            **dict.fromkeys(texts, _or_null(_TEXT)),
        },
        "required": ["role", "content"],
    }


def _tool() -> Schema:
    function = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 1, "maxLength": 64},
            "parameters": _OBJECT,
        },
        "required": ["name"],
    }
    return {
        "type": "object",
        "properties": {"type": {"const": "function"}, "function": function},
        "required": ["function"],
    }


def _completion_choice() -> Schema:
    number = {"type": "number", "maximum": 0}
    logprobs = _all(
        tokens=_list(_TEXT),
        token_logprobs=_list(_or_null(number)),
        top_logprobs=_list(_or_null({"type": "object", "additionalProperties": number})),
        text_offset=_list(_COUNT),
    )
    return _all(index=_COUNT, text=_TEXT, logprobs=_or_null(logprobs), finish_reason=_reason())


def _chat_choice() -> Schema:
    function = _all(name=_TEXT, arguments=_TEXT)
    call = _all(id=_TEXT, type={"const": "function"}, function=function)
    message = _all(role={"const": "assistant"}, content=_or_null(_TEXT), refusal={"type": "null"})
    message["properties"]["tool_calls"] = _list(call, least=1)
    scored = _all(token=_TEXT, logprob={"type": "number", "maximum": 0}, bytes=_list(_COUNT))
    logprobs = _all(content=_list(scored), refusal={"type": "null"})
    reason = _reason("tool_calls")
    return _all(index=_COUNT, message=message, logprobs=_or_null(logprobs), finish_reason=reason)


def _answer(kind: str, choice: Schema) -> Schema:
    return _all(
        id=_TEXT,
        object={"const": kind},
        created=_COUNT,
        model=_TEXT,
        choices=_list(choice, least=1),
        usage=_ref("Usage"),
    )


def _usage() -> Schema:
    names = ("prompt_tokens", "completion_tokens", "total_tokens")
    counts = dict.fromkeys(names, _COUNT)
    return _all(**counts, prompt_tokens_details=_all(cached_tokens=_COUNT))


def _model() -> Schema:
    return _all(
        id=_TEXT, object={"const": "model"}, created=_COUNT, owned_by=_TEXT, max_model_len=_COUNT
    )


def _subnet_list() -> Schema:
    subnet = _all(
        id=_TEXT,
        cut=_TEXT,
        open=_flag(),
        blocks=_COUNT,
        parameters=_COUNT,
        weight_bytes=_COUNT,
        effective_bits={"type": "number"},
        cache=_TEXT,
        cache_bytes_per_token=_COUNT,
        receipts=_list(_OBJECT),
    )
    return _all(
        model=_TEXT,
        planes=_COUNT,
        depths=_list(_COUNT),
        max_context=_COUNT,
        auto=_list(_TEXT),
        subnets=_list(subnet),
    )


def _error() -> Schema:
    inner = _all(
        message={"type": "string", "minLength": 1},
        type=_TEXT,
        param=_or_null(_TEXT),
        code=_or_null(_TEXT),
    )
    return _all(error=inner)


def _request(fields: Mapping[str, Schema], required: Sequence[str] = ()) -> Schema:
    """A body: fields that are not required may be null."""
    known = {
        name: schema if name in required else _or_null(schema) for name, schema in fields.items()
    }
    return {"type": "object", "properties": known, "required": list(required)}


def _all(**fields: Schema) -> Schema:
    """An object that has all of these fields."""
    return {"type": "object", "properties": fields, "required": list(fields)}


def _reason(*more: str) -> Schema:
    return {"type": "string", "enum": ["stop", "length", *more]}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _list(items: Schema, *, least: int = 0, most: int | None = None) -> Schema:
    bounds = {"minItems": least} | ({} if most is None else {"maxItems": most})
    return {"type": "array", "items": items, **bounds}


def _whole(low: int, high: int) -> Schema:
    return {"type": "integer", "minimum": low, "maximum": high}


def _number(low: float, high: float) -> Schema:
    return {"type": "number", "minimum": low, "maximum": high}


def _flag() -> Schema:
    return {"type": "boolean"}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}
