"""Errors as HTTP tells them, in the form of OpenAI's API: whole or within a stream."""

from __future__ import annotations

import traceback
from http import HTTPStatus
from typing import Any, Final

import structlog
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

_log = structlog.get_logger(__name__)

_TYPES: Final = {
    HTTPStatus.UNAUTHORIZED: "authentication_error",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error",
}
QUOTA_SPENT: Final = "insufficient_quota"
"""A budget is spent, in OpenAI's words: the code, and the type as well."""
_STORE_MS: Final = 5_000
_CODES: Final = {
    HTTPStatus.NOT_FOUND: "not_found",
    HTTPStatus.METHOD_NOT_ALLOWED: "method_not_allowed",
}


class ApiError(Exception):
    """A request cannot be answered as it was meant.

    Attributes:
        code: Stable name.
        param: The field of the request that is to blame.
        retry_after_ms: Not None: the same request may succeed after this span.
        final: The same request would fail again: clients must not repeat it by themselves.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after_ms: int | None = None,
        final: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = HTTPStatus(status)
        self.code = code
        self.param = param
        self.retry_after_ms = retry_after_ms
        self.final = final

    @property
    def body(self) -> dict[str, Any]:
        """What the client reads."""
        server = self.status >= HTTPStatus.INTERNAL_SERVER_ERROR
        kind = "server_error" if server else "invalid_request_error"
        kind = QUOTA_SPENT if self.code == QUOTA_SPENT else _TYPES.get(self.status, kind)
        error = {"message": str(self), "type": kind}
        return {"error": {**error, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """When the client may come again, or that it shall not."""
        found = {}
        if self.retry_after_ms is not None:
            found["retry-after"] = str(max(1, -(-self.retry_after_ms // 1_000)))
        if self.final:
            found["x-should-retry"] = "false"
        if self.status is HTTPStatus.UNAUTHORIZED:
            found["www-authenticate"] = "Bearer"
        return found


async def tell_api_error(_request: Request, error: Exception) -> JSONResponse:
    """Answer with an `ApiError`."""
    assert isinstance(error, ApiError)  # noqa: S101 - registered for it alone
    return JSONResponse(error.body, error.status, headers=error.headers)


async def tell_http_error(_request: Request, error: Exception) -> JSONResponse:
    """Answer with what the framework says: no such path, no such method."""
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for it alone
    code = _CODES.get(HTTPStatus(error.status_code), "http_error")
    told = ApiError(error.status_code, code, f"{error.detail}; see docs/gateway.md for the paths")
    return JSONResponse(told.body, error.status_code, headers=error.headers)


async def tell_store_error(_request: Request, error: Exception) -> JSONResponse:
    """Answer while the store cannot be read."""
    _log.warning("http.no_store", error=str(error))
    told = ApiError(503, "store_unavailable", "jobs cannot be read now", retry_after_ms=_STORE_MS)
    return JSONResponse(told.body, told.status, headers=told.headers)


async def tell_failure(request: Request, error: Exception) -> JSONResponse:
    """Answer where the gateway itself is wrong. What was sent is not logged."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{frame.filename}:{frame.lineno}"
    _log.error("http.failed", path=request.url.path, error=type(error).__name__, where=where)
    told = ApiError(500, "internal", "the gateway failed; its log says where")
    return JSONResponse(told.body, told.status)
