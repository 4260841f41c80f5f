"""The routes of the server, and the errors of their handlers as error objects."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec

from pliant.errors import DoesNotFitError
from pliant.serve.api.errors import ApiError, api_error
from pliant.serve.api.fields import Fields
from pliant.serve.api.requests import read_chat, read_completion
from pliant.serve.api.schemas import MAX_DETOKENIZED
from pliant.serve.app import PAGE, PAGE_POLICY, Service
from pliant.serve.openapi import description
from pliant.serve.safety import Guard, GuardLimits, Keys
from pliant.serve.subnets import UnknownModelError

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

Handler = Callable[["Service", "Request"], Awaitable[Any]]


def make_app(service: Service, keys: Keys, limits: GuardLimits) -> Any:
    """The ASGI application of a service, guarded."""
    from starlette.applications import Starlette
    from starlette.routing import Route

    def route(path: str, method: str, handler: Handler) -> Any:
        return Route(path, _answering(service, handler), methods=[method])

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        """Release the engines when the server ends."""
        yield
        service.close()

    app = Starlette(
        routes=[
            route("/", "GET", _page),
            route("/health", "GET", _health),
            route("/metrics", "GET", _metrics),
            route("/openapi.json", "GET", _openapi),
            route("/v1/models", "GET", _models),
            route("/v1/models/{model:path}", "GET", _model),
            route("/v1/subnets", "GET", _subnets),
            route("/v1/completions", "POST", _completions),
            route("/v1/chat/completions", "POST", _chat),
            route("/tokenize", "POST", _tokenize),
            route("/detokenize", "POST", _detokenize),
            route("/tokenizer_info", "GET", _tokenizer_info),
        ],
        lifespan=lifespan,
        exception_handlers={404: _no_path, 405: _no_method},
    )
    return Guard(app, keys, limits)


def _answering(service: Service, handler: Handler) -> Callable[[Request], Awaitable[Any]]:
    """The handler with an id for its request and its errors as error objects."""

    async def answer(request: Request) -> Any:
        """One request."""
        request.scope["pliant.request_id"] = uuid.uuid4().hex
        try:
            response = await handler(service, request)
        except Exception as error:
            failed = _failed(error)
            service.metrics.refused(failed.status)
            service.log(
                {
                    "event": "refused",
                    "request": request.scope["pliant.request_id"],
                    "client": request.scope["pliant.client"],
                    "path": request.url.path,
                    "status": failed.status,
                    "message": f"{type(error).__name__}: {error}",
                }
            )
            response = _error_response(failed)
        with contextlib.suppress(AttributeError):
            response.headers.setdefault("X-Request-Id", request.scope["pliant.request_id"])
        return response

    return answer


def _failed(error: Exception) -> ApiError:
    match error:
        case UnknownModelError():
            return ApiError(404, str(error), code="model_not_found", param="model")
        case DoesNotFitError():
            return ApiError(503, str(error), code="subnets_in_use", headers={"Retry-After": "5"})
    return api_error(error)


async def _completions(service: Service, request: Request) -> Any:
    return await service.answer(request, read_completion)


async def _chat(service: Service, request: Request) -> Any:
    return await service.answer(request, read_chat)


async def _page(service: Service, request: Request) -> Response:
    from starlette.responses import HTMLResponse

    headers = {"Content-Security-Policy": PAGE_POLICY, "X-Content-Type-Options": "nosniff"}
    return HTMLResponse(PAGE.read_bytes(), headers=headers)


async def _health(service: Service, request: Request) -> Response:
    well = service.room.is_alive and not service.draining
    state = "ok" if well else "closing" if service.draining else "engine stopped"
    return _json({"status": state}, 200 if well else 503)


async def _metrics(service: Service, request: Request) -> Response:
    from starlette.responses import Response

    return Response(service.metrics.render(), media_type="text/plain; version=0.0.4")


async def _models(service: Service, request: Request) -> Response:
    data = [_model_object(service, name) for name in service.subnets.names()]
    return _json({"object": "list", "data": data})


async def _model(service: Service, request: Request) -> Response:
    name = request.path_params["model"]
    service.subnets.resolve(name, 0, smallest=None, hurry=False)
    return _json(_model_object(service, name))


async def _subnets(service: Service, request: Request) -> Response:
    subnets = service.subnets
    artifact = subnets.model.artifact
    cuts = dict.fromkeys([subnets.default_cut, *artifact.subnet_names(), *subnets.open_cuts()])
    return _json(
        {
            "model": subnets.name,
            "planes": artifact.num_planes,
            "depths": sorted(artifact.depth_path(), reverse=True),
            "max_context": artifact.spec.max_context,
            "auto": [subnets.model_name(cut) for cut in subnets.auto_cuts],
            "subnets": [subnets.describe(cut) for cut in cuts],
        }
    )


async def _tokenize(service: Service, request: Request) -> Response:
    fields = Fields.parse(await request.body())
    text, other = fields.text("prompt"), fields.text("content")
    special = fields.flag("add_special_tokens", True)
    tokenizer = service.subnets.model.tokenizer
    tokens = await service.prepare(
        lambda: tokenizer.encode(text or other, add_bos=None if special else False)
    )
    context = service.subnets.model.artifact.spec.max_context
    return _json({"tokens": tokens, "count": len(tokens), "max_model_len": context})


async def _detokenize(service: Service, request: Request) -> Response:
    fields = Fields.parse(await request.body())
    tokens = fields.items("tokens", MAX_DETOKENIZED)
    if not all(type(token) is int and 0 <= token < 2**31 for token in tokens):
        raise fields.wrong("tokens", "a list of token ids")
    tokenizer = service.subnets.model.tokenizer
    text = await service.prepare(lambda: tokenizer.decode(tokens, skip_special=False))
    return _json({"prompt": text, "content": text})


async def _tokenizer_info(service: Service, request: Request) -> Response:
    tokenizer = service.subnets.model.tokenizer
    kinds = ("bos_token", "eos_token", "pad_token", "unk_token")
    names = {name: tokenizer.special_tokens.get(name) for name in kinds}
    if names["eos_token"] is None and tokenizer.eos_ids:
        names["eos_token"] = tokenizer.decode([min(tokenizer.eos_ids)], skip_special=False)
    template = tokenizer.chat_template
    source = None if template is None else template.templates.get("default")
    context = service.subnets.model.artifact.spec.max_context
    return _json({**names, "chat_template": source, "max_model_len": context})


async def _openapi(service: Service, request: Request) -> Response:
    return _json(description())


def _model_object(service: Service, name: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": service.started,
        "owned_by": "pliant",
        "max_model_len": service.subnets.model.artifact.spec.max_context,
    }


def _json(data: Any, status: int = 200) -> Response:
    from starlette.responses import Response

    return Response(msgspec.json.encode(data), status, media_type="application/json")


def _error_response(error: ApiError) -> Response:
    response = _json(error.body, error.status)
    response.headers.update(error.headers)
    return response


async def _no_path(request: Request, error: Exception) -> Response:
    return _error_response(
        ApiError(404, f"There is nothing at {request.url.path}.", code="unknown_url")
    )


async def _no_method(request: Request, error: Exception) -> Response:
    return _error_response(
        ApiError(
            405,
            f"{request.method} is not for {request.url.path}.",
            code="wrong_method",
            headers=getattr(error, "headers", None),
        )
    )
