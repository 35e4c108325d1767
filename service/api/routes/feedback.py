"""``POST /feedback``: the truth about an image that was logged."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request

from service.api import bodies, receiving
from service.api.dependencies import Injected
from service.api.error_responses import responses
from service.api.routes.config import json_body
from service.api.schemas import FeedbackAnswer, FeedbackBody

router = APIRouter(tags=["feedback"])

MAX_BYTES = 8192  # an id and a name of the most characters, each escaped, and what stands between


async def _body(request: Request) -> FeedbackBody:
    """Bounded: FastAPI by itself would read it however long it is."""
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
    """Tell what an image shows, by the `request_id` of its answer, where the server keeps a sample log.

    Each process knows the latest 65,536 images that it logged, as long as it lives. The last word on an image counts.
    """
    return FeedbackAnswer(**await parts.feedback.take(body.request_id, body.index, body.label))
