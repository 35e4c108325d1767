"""Converts every error to the common shape, or to that of ``/v2``. Foreign exceptions are translated only here."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from service.api.protocol_schemas import ProtocolError
from service.api.request_context import HEADER, UNKNOWN_ROUTE, new_id, request_id
from service.api.schemas import ErrorAnswer, ErrorDetail
from service.errors import Busy, LowfirstError, RequestTimeout, Unauthorized
from service.log import logger
from service.metrics import Metrics

MAX_ECHO = 200


def install(app: FastAPI) -> None:
    """Make ``app`` answer every error in the common shape; ``RequestContext`` handles unknown ones."""
    for kind, handler in _HANDLERS.items():
        app.add_exception_handler(kind, handler)


async def answer(request: Request, error: Exception) -> Response:
    """Answer one of ``KNOWN``."""
    for kind, handler in _HANDLERS.items():
        if isinstance(error, kind):
            return await handler(request, error)
    raise error


def detail(error: LowfirstError, id_: str) -> ErrorDetail:
    """Body of one of our errors."""
    return ErrorDetail(
        code=error.code,
        message=error.message,
        field=error.field,
        value=echo(error.value),
        bound=echo(error.bound),
        request_id=id_,
    )


def echo(value: Any) -> Any:
    """A value that is short and plain enough to send back: JSON has no NaN, and a megabyte is of no use."""
    if value is None or (isinstance(value, bool | int | float) and abs(value) <= sys.float_info.max):
        return value
    if isinstance(value, list | tuple) and len(value) <= MAX_ECHO:
        return [echo(item) for item in value]
    text = str(value)
    return text if len(text) <= MAX_ECHO else text[:MAX_ECHO] + "…"


def _respond(request: Request, status: int, body: ErrorDetail, headers: dict[str, str] | None = None) -> JSONResponse:
    content = ProtocolError(error=body.message) if _speaks_the_protocol(request) else ErrorAnswer(error=body)
    return JSONResponse(content.model_dump(), status, headers)


def _speaks_the_protocol(request: Request) -> bool:
    """Whether the request is for the Open Inference Protocol, whose errors have a shape of their own: only text."""
    path: str = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
    return path == "/v2" or path.startswith("/v2/")


async def own(request: Request, error: Exception) -> JSONResponse:
    """Answer one of our errors."""
    assert isinstance(error, LowfirstError)
    return _respond(request, error.status, detail(error, request_id(request)), _headers(error))


def refusal(error: LowfirstError, metrics: Metrics) -> JSONResponse:
    """Answer a request that no app will see; its connection is closed. It is counted here."""
    id_ = new_id().decode()
    metrics.requests.labels(UNKNOWN_ROUTE, error.status).inc()
    body = ErrorAnswer(error=detail(error, id_))
    return JSONResponse(
        body.model_dump(), error.status, {HEADER.decode(): id_, **_headers(error), "Connection": "close"}
    )


def _headers(error: LowfirstError) -> dict[str, str]:
    if isinstance(error, Busy):
        return {"Retry-After": str(error.retry_after_seconds)}
    if isinstance(error, Unauthorized):
        return {"WWW-Authenticate": "Bearer"}
    return {"Connection": "close"} if isinstance(error, RequestTimeout) else {}


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    is_json = first["type"] == "json_invalid"
    where = [str(part) for part in first["loc"] if part not in ("query", "body", "path", "header")]
    field = None if is_json or not where else str(echo(".".join(where)))
    value = None if field is None or first["type"] == "missing" else echo(first["input"])
    bounds = {key: value for key, value in first.get("ctx", {}).items() if key not in ("error", "class_name")}
    message = first["msg"].removeprefix("Value error, ")
    if field is not None:
        message = f"{field} is missing" if first["type"] == "missing" else f"{field} is {value!r}: {message}"
    return _respond(
        request,
        HTTPStatus.BAD_REQUEST if is_json else HTTPStatus.UNPROCESSABLE_ENTITY,
        ErrorDetail(
            code="bad_request" if is_json else "invalid_field",
            message=message,
            field=field,
            value=value,
            bound=echo(next(iter(bounds.values()), None)),
            request_id=request_id(request),
        ),
    )


async def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    code = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
    body = ErrorDetail(code=code, message=str(error.detail), request_id=request_id(request))
    headers = dict(error.headers or {})
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        headers["Allow"] = _allowed(request, headers.get("Allow", ""))
    return _respond(request, error.status_code, body, headers)


def _allowed(request: Request, told: str) -> str:
    """The methods of the path: Starlette gives ``told`` only those of its first route."""
    path = getattr(request.scope.get("route"), "path", None)
    methods = {method.upper() for method in request.app.openapi()["paths"].get(path, {})}
    return ", ".join(sorted(methods.union(filter(None, told.split(", ")))))


async def unknown(request: Request, error: Exception) -> JSONResponse:
    """Give the client only the request id; the log has the rest."""
    id_ = request_id(request)
    logger.error("request %s failed", id_, exc_info=error)
    return _respond(request, 500, ErrorDetail(code="internal", message="internal error", request_id=id_))


_HANDLERS: dict[type[Exception], Callable[[Request, Exception], Awaitable[Response]]] = {
    LowfirstError: own,
    RequestValidationError: _invalid,
    HTTPException: _http,
}
KNOWN = tuple(_HANDLERS)
