"""The routes of the server, and the errors of their handlers as error objects."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec

from pliant.errors import DoesNotFitError, OutOfSpaceError
from pliant.serve.api.errors import ApiError, api_error
from pliant.serve.api.requests import read_chat, read_completion
from pliant.serve.app import PAGE, PAGE_POLICY, Service, warning_of
from pliant.serve.openapi import description
from pliant.serve.origins import Origins
from pliant.serve.safety import Guard, GuardLimits, Keys, Scope
from pliant.serve.spare_memory import give_back_for_ever
from pliant.serve.subnets import UnknownModelError
from pliant.serve.tokenizing import (
    Tokenizing,
    describe_tokenizer,
    read_detokenize,
    read_tokenize,
)

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

Handler = Callable[["Service", "Request"], Awaitable[Any]]


def make_app(
    service: Service, keys: Keys, limits: GuardLimits, origins: Origins | None = None
) -> Any:
    """The ASGI application of a service, guarded, for its own page and those of `origins`."""
    from starlette.applications import Starlette
    from starlette.routing import Route

    def route(path: str, method: str, handler: Handler) -> Any:
        return Route(path, _answering(service, handler), methods=[method])

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        """Give spare memory back meanwhile, and release the engines when the server ends."""
        giving = asyncio.create_task(give_back_for_ever())
        yield
        giving.cancel()
        service.close()

    def refused(scope: Scope, error: ApiError) -> Response:
        return _refused(service, scope, error)

    async def no_path(request: Request, error: Exception) -> Response:
        """An address that there is not."""
        said = f"There is nothing at {request.url.path}."
        return refused(request.scope, ApiError(404, said, code="unknown_url"))

    async def no_method(request: Request, error: Exception) -> Response:
        """A method that an address does not have."""
        said, headers = f"{request.method} is not for {request.url.path}.", error.headers  # type: ignore[attr-defined]
        return refused(request.scope, ApiError(405, said, code="wrong_method", headers=headers))

    origins = origins or Origins()
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
        exception_handlers={404: no_path, 405: no_method},
    )
    return origins.around(Guard(app, keys, limits, origins, refused))


def _answering(service: Service, handler: Handler) -> Callable[[Request], Awaitable[Any]]:
    """The handler with an id for its request and its errors as error objects."""

    async def answer(request: Request) -> Any:
        """One request."""
        try:
            response = await handler(service, request)
        except Exception as error:
            response = _refused(service, request.scope, error)
        with contextlib.suppress(AttributeError):
            response.headers.setdefault("X-Request-Id", request.scope["pliant.request_id"])
        return response

    return answer


def _refused(service: Service, scope: Scope, error: Exception) -> Response:
    """The answer to a request that was refused or failed, which is counted and written down."""
    failed = _failed(error)
    service.metrics.refused(failed.status)
    service.log(
        {
            "event": "refused" if failed.status < 500 else "failed",
            "request": scope["pliant.request_id"],
            "client": scope["pliant.client"],
            "path": scope["path"],
            "status": failed.status,
            "message": f"{type(error).__name__}: {error}",
        }
    )
    response = _json(failed.body, failed.status)
    response.headers.update({**failed.headers, "X-Request-Id": scope["pliant.request_id"]})
    return response


def _failed(error: Exception) -> ApiError:
    match error:
        case UnknownModelError():
            return ApiError(404, str(error), code="model_not_found", param="model")
        case DoesNotFitError():
            return ApiError(503, str(error), code="subnets_in_use", headers={"Retry-After": "5"})
        case OutOfSpaceError():
            return ApiError(503, str(error), code="out_of_memory", headers={"Retry-After": "5"})
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
    if not name:
        return await _models(service, request)
    service.subnets.resolve(name)
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
    return await _tokenized(service, read_tokenize(await request.body()), _context(service))


async def _detokenize(service: Service, request: Request) -> Response:
    vocab_size = service.subnets.model.artifact.spec.vocab_size
    return await _tokenized(service, read_detokenize(await request.body(), vocab_size), {})


async def _tokenized(service: Service, asked: Tokenizing, more: Mapping[str, Any]) -> Response:
    # All models here have one tokenizer; a name that is none is refused all the same.
    service.subnets.resolve(asked.model)
    found = await service.prepare(lambda: asked.run(service.subnets.model.tokenizer))
    response = _json({**found, **more})
    response.headers.update(warning_of(asked.unknown))
    return response


async def _tokenizer_info(service: Service, request: Request) -> Response:
    described = describe_tokenizer(service.subnets.model.tokenizer)
    return _json({**described, **_context(service)})


def _context(service: Service) -> dict[str, int]:
    return {"max_model_len": service.subnets.model.artifact.spec.max_context}


async def _openapi(service: Service, request: Request) -> Response:
    return _json(description())


def _model_object(service: Service, name: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": service.started,
        "owned_by": "pliant",
        **_context(service),
    }


def _json(data: Any, status: int = 200) -> Response:
    from starlette.responses import Response

    return Response(msgspec.json.encode(data), status, media_type="application/json")
