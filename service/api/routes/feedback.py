"""``POST /feedback``: the true label of a logged image."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request

from service.api import bodies, receiving
from service.api.dependencies import Injected
from service.api.error_responses import responses
from service.api.routes.config import json_body
from service.api.schemas import FeedbackAnswer, FeedbackBody

router = APIRouter(tags=["feedback"])

MAX_BYTES = 8192  # longest id and name with every character escaped, and the rest of the JSON


async def _body(request: Request) -> FeedbackBody:
    """Read the body with a size limit, which FastAPI does not have."""
    kind = bodies.content_type(request)
    if kind != "application/json":
        raise bodies.unsupported(kind, "application/json")
    return bodies.parse(FeedbackBody, await receiving.read(request, MAX_BYTES))


@router.post(
    "/feedback",
    operation_id="give_feedback",
    responses=responses(400, 401, 404, 408, 413, 415, 422),
    openapi_extra=json_body(FeedbackBody),
)
async def feedback(parts: Injected, body: Annotated[FeedbackBody, Depends(_body)]) -> FeedbackAnswer:
    """Report the true label of an image, by the `request_id` of its answer. The server needs a sample log.

    Each process remembers its latest 65,536 logged images while it runs. The last report for an image counts.
    """
    return FeedbackAnswer(**await parts.feedback.take(body.request_id, body.index, body.label))
