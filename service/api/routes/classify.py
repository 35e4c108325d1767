"""``POST /classify`` and ``POST /classify/batch``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Body, Depends, Query, Request, Response

from service.api import answers, bodies
from service.api.answers import Fields, fields_of
from service.api.classifying import ask_of, check_room, classify_image, most_images
from service.api.dependencies import Parts, parts_of
from service.api.direct import DirectRoute
from service.api.error_handlers import detail
from service.api.error_responses import WORK, responses
from service.api.exchange import unless_client_leaves
from service.api.receiving import read
from service.api.request_context import request_id
from service.api.schemas import BatchAnswer, BatchError, ClassifyAnswer, ClassifyQuery, JsonImage
from service.engine.answer import Ask
from service.errors import LowfirstError

DEFAULT_TOP_K = 5


def _query(query: Annotated[ClassifyQuery, Query()]) -> None:
    """For OpenAPI only."""


def _json_image(asked: Annotated[JsonImage, Body()]) -> None:
    """For OpenAPI only."""


router = APIRouter(
    tags=["classify"], route_class=DirectRoute, dependencies=[Depends(_query)], responses=responses(*WORK)
)

# One kind of body per route: client generators use the first content type of a route, or the union of all.
ONE_IMAGE = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}
MANY_IMAGES = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"image": {"type": "array", "items": {"type": "string", "format": "binary"}}},
                    "required": ["image"],
                }
            }
        },
    }
}


@router.post("/classify", operation_id="classify", response_model=ClassifyAnswer, openapi_extra=ONE_IMAGE)
async def classify(request: Request) -> Response:
    """Classify one image, sent as the body (`application/octet-stream` or `image/*`). URLs are not fetched.

    This route also accepts a multipart part `image`, and the JSON of `POST /classify/json`. Any picture at all gets one
    of the model's labels; there is no answer "none of these".
    """
    return await _one(request, bodies.one_image)


@router.post(
    "/classify/json",
    operation_id="classify_json",
    response_model=ClassifyAnswer,
    dependencies=[Depends(_json_image)],
)
async def classify_json(request: Request) -> Response:
    """Classify one image in JSON, as base64 (line breaks are allowed) or as a data URI."""
    return await _one(request, bodies.image_in_json)


async def _one(request: Request, image_in: Callable[[Request, bytes], bytes]) -> Response:
    parts = parts_of(request)
    model, ask = _ask(request, parts)
    check_room(parts, parts.models.find(model), ask)
    image = image_in(request, await read(request, _body_limit(request, parts.settings.max_image_bytes)))
    with parts.admission.admit(images=1, size=len(image)):
        return answers.one(
            await unless_client_leaves(request, _classify(parts, model, image, ask, request_id(request)))
        )


@router.post("/classify/batch", operation_id="classify_batch", response_model=BatchAnswer, openapi_extra=MANY_IMAGES)
async def classify_batch(request: Request) -> Response:
    """Classify several images, sent as multipart parts `image`; results are in the same order.

    An image that fails has its error in its place; the others are still answered.
    """
    parts = parts_of(request)
    model, ask = _ask(request, parts)
    parts.admission.check()
    body = await read(request, parts.settings.max_batch_bytes)
    images = bodies.many_images(request, body, most_images(parts))
    id_ = request_id(request)
    with parts.admission.admit(images=len(images), size=len(body)):
        results = await unless_client_leaves(
            request,
            asyncio.gather(
                *(
                    _classify_or_error(parts, model, image, replace(ask, index=index), id_)
                    for index, image in enumerate(images)
                )
            ),
        )
    return answers.json_response({"results": results})


async def _classify(parts: Parts, model: str | None, image: bytes, ask: Ask, id_: str) -> Fields:
    return fields_of(await classify_image(parts, parts.models.find(model), image, ask), id_)


async def _classify_or_error(parts: Parts, model: str | None, image: bytes, ask: Ask, id_: str) -> Fields:
    try:
        return await _classify(parts, model, image, ask, id_)
    except LowfirstError as error:
        return BatchError(error=detail(error, id_), status=error.status).model_dump()


def _ask(request: Request, parts: Parts) -> tuple[str | None, Ask]:
    """The model and the options of a request."""
    query = bodies.query(request, ClassifyQuery)
    parts.models.find(query.model)  # before the body is read
    top_k = query.top_k or DEFAULT_TOP_K
    names_version = query.model is not None and "/" in query.model
    return query.model, ask_of(request, parts, query.threshold, query.deadline_ms, top_k, query.passes, names_version)


def _body_limit(request: Request, image_limit: int) -> int:
    """Most bytes of a body with an image of ``image_limit`` bytes: base64 and multipart are larger than the image."""
    kind = bodies.content_type(request)
    if kind == bodies.JSON:
        return image_limit * 3 // 2 + 1024  # 4/3 for base64, and 1/16 for line breaks
    return image_limit + 1024 if kind == bodies.MULTIPART else image_limit
