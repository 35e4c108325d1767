"""Possible errors of each route, for the documentation and for client generators."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from service.api.protocol_schemas import ProtocolError
from service.api.schemas import ErrorAnswer

Responses = dict[int | str, dict[str, Any]]

WORK = (400, 401, 404, 408, 413, 415, 422, 429, 500, 503, 504)
CHANGE = (400, 401, 403, 404, 408, 409, 412, 413, 415, 422, 503)

WHEN = {
    400: "An image, JSON or multipart body that cannot be read.",
    401: "The key is missing or wrong.",
    403: "The key does not allow changes, or no key allows them.",
    404: "Unknown model or version, or it is not served; for feedback, an unknown request.",
    408: "The body did not arrive in time.",
    409: "Another trial is running, or none is.",
    412: "`If-Match` names another config version.",
    413: "Too many bytes or pixels.",
    415: "An unsupported content type or image format.",
    422: "A field is missing, has the wrong type or is out of bounds.",
    429: "Too much work in flight; `Retry-After` says when to try again.",
    500: "The network failed, or an unknown error.",
    503: "Stopping, or not ready; for config changes also: the shared state does not answer.",
    504: "The deadline passed before any answer existed.",
}
RETRY_AFTER = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}


def responses(*statuses: int) -> Responses:
    """Errors in the common shape."""
    return {status: _error(status, ErrorAnswer) for status in statuses}


def protocol_responses(*statuses: int) -> Responses:
    """Errors in the Open Inference Protocol's shape."""
    return {status: _error(status, ProtocolError) for status in statuses}


def _error(status: int, model: type[ErrorAnswer | ProtocolError]) -> dict[str, Any]:
    headers = {"headers": RETRY_AFTER} if status == HTTPStatus.TOO_MANY_REQUESTS else {}
    return {"model": model, "description": WHEN[status], **headers}


ANY: Responses = {"default": {"model": ErrorAnswer, "description": "Any other error."}}
ANY_OF_PROTOCOL: Responses = {"default": {"model": ProtocolError, "description": "Any other error."}}
