"""`description`: the HTTP interface as an OpenAPI 3.1 document; `/openapi.json` serves it.

`python -m pliant.serve.openapi` writes it to docs/reference/openapi.json. The bounds in it are the
constants that the readers of bodies use; tests send what it allows and what it forbids to a live
server, and hold its paths against the routes.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from pliant.serve.api import schemas

#: Where the document lies in the repository.
PAGE = Path(__file__).parents[3] / "docs" / "reference" / "openapi.json"
#: What each refusal means, by its status.
_REFUSALS = {
    400: "The request cannot be answered as it stands.",
    401: "The key is missing or wrong.",
    403: "Another web page asks, or one by a name that is not this server's.",
    404: "There is no such model or path.",
    408: "The body did not come in time.",
    413: "The body is too large.",
    431: "The headers are too large.",
    429: "Too much is waiting, or this client asks too often; see `Retry-After`.",
    500: "The server failed.",
    503: "The server is closing, or too many subnets are in use; see `Retry-After`.",
    504: "The deadline of the request has passed.",
}
_OPEN_STATUSES = (403, 431, 500)
_GET_STATUSES = (401, 403, 431, 500)
_POST_STATUSES = (400, 401, 403, 408, 413, 429, 431, 500)


def description() -> dict[str, Any]:
    """The whole document."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "pliant serve",
            "version": "1",
            "description": "One artifact behind the HTTP interface of the OpenAI API. "
            "A field that is null counts as left out; unknown ones are named in a `Warning`.",
        },
        "paths": _paths(),
        "components": {
            "schemas": schemas.named(),
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        # Either: a server without keys asks for none.
        "security": [{}, {"key": []}],
    }


def render() -> str:
    """The document as it is committed."""
    return msgspec.json.format(msgspec.json.encode(description()), indent=1).decode() + "\n"


def _paths() -> dict[str, Any]:
    page = {"200": _said("The chat page.", "text/html", {"type": "string"})}
    numbers = {"200": _said("Numbers for Prometheus.", "text/plain", {"type": "string"})}
    model = {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}
    health = {status: _answer("State", "Whether it answers.") for status in ("200", "503")}
    document = {"200": _said("This document.", "application/json", {"type": "object"})}
    return {
        "/": {"get": _operation("page", page, _OPEN_STATUSES)},
        "/health": {"get": _operation("health", health, _OPEN_STATUSES)},
        "/metrics": {"get": _operation("metrics", numbers, _GET_STATUSES)},
        "/openapi.json": {"get": _operation("openapi", document, _GET_STATUSES)},
        "/v1/models": {"get": _get("models", "ModelList")},
        "/v1/models/{model}": {
            "get": {**_get("model", "Model", 404), "parameters": [model]},
        },
        "/v1/subnets": {"get": _get("subnets", "SubnetList")},
        "/v1/completions": {"post": _texts("completions", "Completion")},
        "/v1/chat/completions": {"post": _texts("chat", "Chat")},
        "/tokenize": {"post": _post("tokenize", "Tokenize", "Tokens", 404)},
        "/detokenize": {"post": _post("detokenize", "Detokenize", "Detokenized", 404)},
        "/tokenizer_info": {"get": _get("tokenizer_info", "TokenizerInfo")},
    }


def _texts(name: str, kind: str) -> dict[str, Any]:
    """An operation that answers as a whole or as a stream."""
    operation = _post(name, f"{kind}Request", f"{kind}Answer", 404, 503, 504)
    # Each event; its data is a chunk of the answer, an error object, or at the end `[DONE]`.
    event = {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data"]}
    operation["responses"]["200"]["content"]["text/event-stream"] = {"schema": event}
    return operation


def _post(name: str, asked: str, answered: str, *more: int) -> dict[str, Any]:
    found = {"200": _answer(answered, "The answer.")}
    body = {"required": True, "content": {"application/json": {"schema": _ref(asked)}}}
    return {**_operation(name, found, (*_POST_STATUSES, *more)), "requestBody": body}


def _get(name: str, answered: str, *more: int) -> dict[str, Any]:
    return _operation(name, {"200": _answer(answered, "The answer.")}, (*_GET_STATUSES, *more))


def _operation(name: str, answers: Mapping[str, Any], refusals: tuple[int, ...]) -> dict[str, Any]:
    refused = {str(one): _answer("Error", _REFUSALS[one]) for one in sorted(refusals)}
    return {"operationId": name, "responses": {**answers, **refused}}


def _answer(schema: str, text: str) -> dict[str, Any]:
    return _said(text, "application/json", _ref(schema))


def _said(text: str, kind: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"description": text, "content": {kind: {"schema": schema}}}


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def main() -> int:
    """Write the document."""
    PAGE.write_text(render(), encoding="utf-8")
    print(PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
