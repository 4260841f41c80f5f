"""`ApiError`: a failure as clients of the OpenAI API know it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pliant.errors import GenerationError, PliantError, UnsupportedError, UsageError
from pliant.serve.outbox import Failure
from pliant.serve.scheduling import TooBusyError

#: The `type` of the error object for each status.
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "invalid_request_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
    504: "timeout_error",
}


class ApiError(PliantError):
    """A status, a sentence, and the `code` and `param` of the error object."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """The error object."""
        return {
            "error": {
                "message": str(self),
                "type": _TYPES.get(self.status, "invalid_request_error"),
                "param": self.param,
                "code": self.code,
            }
        }


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """A request that cannot be answered as it stands."""
    return ApiError(400, message, param=param, code=code)


def api_error(error: Exception) -> ApiError:
    """Any exception as one for the client; what is our own mistake says so and no more."""
    match error:
        case ApiError():
            return error
        case TooBusyError():
            return ApiError(
                429,
                str(error),
                code="server_overloaded",
                headers={"Retry-After": str(error.retry_after)},
            )
        case GenerationError() | UsageError() | UnsupportedError():
            return bad_request(str(error))
    return ApiError(500, f"The server failed: {type(error).__name__}.", code="internal_error")


def failure_error(failure: Failure) -> ApiError:
    """The end of a text that the engine room could not finish."""
    status = {"deadline": 504, "request": 400}.get(failure.kind, 500)
    code = {"deadline": "deadline_exceeded"}.get(failure.kind)
    return ApiError(status, failure.message, code=code)
