"""`TextRequest`: what a body asks for, read and checked before anything is computed."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from pliant.runtime.sampling import SamplingOptions
from pliant.serve.api.errors import bad_request
from pliant.serve.api.fields import Fields
from pliant.serve.writer import WriterOptions

MAX_CHOICES = 16
MAX_PROMPTS = 64
MAX_STOPS = 16
MAX_TOP_LOGPROBS = 20
#: Tokens of a completion that names no limit, as the OpenAI API has it.
DEFAULT_COMPLETION_TOKENS = 16
MAX_TOKENS = 2**31 - 1

Kind = Literal["chat", "completion"]
#: Fields that clients send and that change nothing here: no warning is due.
_HARMLESS = ("user", "store", "metadata", "service_tier", "safety_identifier", "prompt_cache_key",
             "prompt_cache_retention")  # fmt: skip


class TextRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One body, of either kind.

    `max_tokens` None means as many as fit; 0 (a completion that only scores its prompt) is written
    as one token that is not shown. `options.sampling` holds the seed of the first choice;
    `messages` or `prompts` what to go on from; `schema` the JSON schema of the text, `tools` those
    that may be called, `forced_tool` the name of the one that must be, or "" for any;
    `parallel_calls` lets several be called in one answer.
    """

    kind: Kind
    model: str
    options: WriterOptions
    max_tokens: int | None
    num_choices: int
    stream: bool
    include_usage: bool
    echo: bool = False
    prompts: tuple[str | tuple[int, ...], ...] = ()
    messages: tuple[Mapping[str, Any], ...] = ()
    schema: Mapping[str, Any] | None = None
    tools: tuple[Mapping[str, Any], ...] = ()
    forced_tool: str | None = None
    parallel_calls: bool = True
    template_variables: Mapping[str, Any] = {}
    timeout_seconds: float | None = None
    smallest_cut: str | None = None
    prefer: Literal["", "quality", "latency"] = ""
    unknown: tuple[str, ...] = ()


def read_completion(body: bytes) -> TextRequest:
    """The request of a body for `/v1/completions`."""
    fields = Fields.parse(body)
    top = fields.optional_integer("logprobs", 0, MAX_TOP_LOGPROBS)
    echo = fields.flag("echo")
    limit = fields.integer("max_tokens", 0, MAX_TOKENS, DEFAULT_COMPLETION_TOKENS)
    if limit == 0 and not echo:
        raise bad_request("max_tokens is 0 and nothing is echoed, so there is nothing to answer.",
                          param="max_tokens")  # fmt: skip
    if fields.text("suffix"):
        raise bad_request("A suffix is not supported; leave it out.", param="suffix")
    choices = fields.integer("n", 1, MAX_CHOICES, 1)
    if fields.integer("best_of", 1, MAX_CHOICES, choices) != choices:
        raise bad_request("best_of must equal n here; leave it out.", param="best_of")
    prompts = _prompts(fields)
    return TextRequest(
        kind="completion",
        max_tokens=limit,
        echo=echo,
        prompts=prompts,
        options=_options(fields, limit, top, prompt_logprobs=echo and top is not None),
        **_common(fields, choices),
    )


def read_chat(body: bytes) -> TextRequest:
    """The request of a body for `/v1/chat/completions`."""
    from pliant.serve.api.messages import read_messages, read_tools

    fields = Fields.parse(body)
    wants = fields.flag("logprobs")
    top = fields.optional_integer("top_logprobs", 0, MAX_TOP_LOGPROBS)
    if top is not None and not wants:
        raise bad_request("top_logprobs needs logprobs: true.", param="top_logprobs")
    limit = fields.optional_integer("max_completion_tokens", 1, MAX_TOKENS)
    older = fields.optional_integer("max_tokens", 1, MAX_TOKENS)
    if limit is not None and older is not None and limit != older:
        raise bad_request("max_tokens and max_completion_tokens differ; give one.",
                          param="max_tokens")  # fmt: skip
    limit = older if limit is None else limit
    tools, forced = read_tools(fields)
    variables = fields.raw("chat_template_kwargs")
    variables = {} if variables is None else variables
    if not isinstance(variables, dict):
        raise fields.wrong("chat_template_kwargs", "an object")
    return TextRequest(
        kind="chat",
        max_tokens=limit,
        messages=read_messages(fields),
        schema=_schema(fields),
        tools=tools,
        forced_tool=forced,
        parallel_calls=fields.flag("parallel_tool_calls", True),
        template_variables=variables,
        options=_options(fields, limit, (top or 0) if wants else None, continues=False),
        **_common(fields, fields.integer("n", 1, MAX_CHOICES, 1)),
    )


def _common(fields: Fields, choices: int) -> dict[str, Any]:
    """Fields of both kinds; called last, because it looks for fields that nobody has read."""
    stream = fields.flag("stream")
    stream_options = fields.object("stream_options")
    if stream_options is not None and not stream:
        raise bad_request("stream_options needs stream: true.", param="stream_options")
    usage = False
    if stream_options is not None:
        usage = stream_options.flag("include_usage")
        # Random padding against listeners on the line, for whom there is TLS.
        stream_options.flag("include_obfuscation")
    wishes = fields.object("pliant")
    found = {
        "model": fields.text("model"),
        "num_choices": choices,
        "stream": stream,
        "include_usage": usage,
    }
    if wishes is not None:
        seconds = wishes.number("timeout_seconds", 0, 86_400, 0)
        found["timeout_seconds"] = seconds or None
        found["smallest_cut"] = wishes.text("smallest") or None
        if wishes.raw("prefer") is not None:
            found["prefer"] = wishes.choice("prefer", ("quality", "latency"), "")
        if wishes.unknown():
            raise bad_request(f"pliant.{wishes.unknown()[0]} is no wish; there are "
                              "timeout_seconds, smallest and prefer.", param="pliant")  # fmt: skip
    for name in _HARMLESS:
        fields.raw(name)
    found["unknown"] = tuple(fields.unknown())
    return found


def _options(
    fields: Fields,
    limit: int | None,
    top: int | None,
    *,
    prompt_logprobs: bool = False,
    continues: bool = True,
) -> WriterOptions:
    seed = fields.optional_integer("seed", -(2**63), 2**64 - 1)
    # Without a seed every request has one of its own; the choice of a text is then random.
    drawn = secrets.randbits(63) if seed is None else seed % 2**64
    sampling = SamplingOptions(
        temperature=fields.number("temperature", 0, 100, 1.0),
        top_k=max(fields.integer("top_k", -1, MAX_TOKENS, 0), 0),
        # Of a top_p of 0 only the likeliest token is left, which the least positive one says too.
        top_p=max(fields.number("top_p", 0, 1, 1.0), 1e-9),
        min_p=fields.number("min_p", 0, 1, 0.0),
        repetition_penalty=fields.number("repetition_penalty", 0.01, 100, 1.0),
        seed=drawn,
        max_tokens=max(limit or 1, 1),
        stop=_stops(fields),
    )
    return WriterOptions(
        sampling=sampling,
        logit_bias=_logit_bias(fields),
        presence_penalty=fields.number("presence_penalty", -2, 2, 0.0),
        frequency_penalty=fields.number("frequency_penalty", -2, 2, 0.0),
        top_logprobs=top,
        prompt_logprobs=prompt_logprobs,
        ignore_eos=fields.flag("ignore_eos"),
        continues=continues,
    )


def _stops(fields: Fields) -> tuple[str, ...]:
    value = fields.raw("stop")
    given = [value] if isinstance(value, str) else [] if value is None else value
    texts = isinstance(given, list) and all(isinstance(text, str) and text for text in given)
    if not texts or len(given) > MAX_STOPS:
        raise fields.wrong("stop", f"a text, or a list of at most {MAX_STOPS}, none of them empty")
    return tuple(given)


def _logit_bias(fields: Fields) -> dict[int, float]:
    value = fields.raw("logit_bias")
    value = {} if value is None else value
    rule = "an object of token ids and numbers from -100 to 100"
    if not isinstance(value, dict):
        raise fields.wrong("logit_bias", rule)
    biases: dict[int, float] = {}
    for key, bias in value.items():
        numeric = isinstance(bias, int | float) and not isinstance(bias, bool)
        if not key.isascii() or not key.isdigit() or not numeric or not -100 <= bias <= 100:
            raise fields.wrong("logit_bias", rule)
        biases[int(key[:12])] = float(bias)
    return biases


def _prompts(fields: Fields) -> tuple[str | tuple[int, ...], ...]:
    """A text, a list of texts, a list of token ids, or a list of such lists."""
    value = fields.raw("prompt")
    value = "" if value is None else value
    given = [value] if isinstance(value, str) or _is_ids(value) else value
    rule = f"a text, token ids, or a list of at most {MAX_PROMPTS} of either"
    if not isinstance(given, list) or not 0 < len(given) <= MAX_PROMPTS:
        raise fields.wrong("prompt", rule)
    if not all(isinstance(prompt, str) or _is_ids(prompt) for prompt in given):
        raise fields.wrong("prompt", rule)
    return tuple(prompt if isinstance(prompt, str) else tuple(prompt) for prompt in given)


def _is_ids(value: object) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(type(token) is int and 0 <= token < 2**31 for token in value)
    )


def _schema(fields: Fields) -> Mapping[str, Any] | None:
    """The JSON schema that `response_format` asks for, None for a plain text."""
    from pliant.serve.grammar import ANY_OBJECT

    wanted = fields.object("response_format")
    if wanted is None:
        return None
    kind = wanted.choice("type", ("text", "json_object", "json_schema"), "text")
    if kind == "text":
        return None
    if kind == "json_object":
        return ANY_OBJECT
    named = wanted.object("json_schema")
    schema = named.raw("schema") if named is not None else None
    if named is not None:
        # Every schema is kept strictly, whatever it is called.
        for name in ("name", "description", "strict"):
            named.raw(name)
    if not isinstance(schema, dict):
        raise bad_request("response_format.json_schema.schema is missing; give a JSON schema.",
                          param="response_format")  # fmt: skip
    return schema
