"""``POST /classify`` and ``POST /classify/batch``."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response

from service.api import answers, bodies
from service.api.answers import Fields, fields_of
from service.api.classifying import ask_of, check_room, classify_image, most_images
from service.api.dependencies import Parts, parts_of
from service.api.direct import DirectRoute
from service.api.error_handlers import detail
from service.api.exchange import unless_client_leaves
from service.api.receiving import read
from service.api.request_context import request_id
from service.api.schemas import BatchAnswer, BatchError, ClassifyAnswer, ClassifyQuery, JsonImage
from service.engine.answer import Ask
from service.errors import InvalidOption, LowfirstError

DEFAULT_TOP_K = 5


def _query(query: Annotated[ClassifyQuery, Query()]) -> None:
    """For the documentation."""


router = APIRouter(tags=["classify"], route_class=DirectRoute, dependencies=[Depends(_query)])

BINARY = {"schema": {"type": "string", "format": "binary"}}
ONE_IMAGE = {
    "requestBody": {
        "required": True,
        "content": {
            "image/*": BINARY,
            "application/octet-stream": BINARY,
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"image": {"type": "string", "format": "binary"}},
                    "required": ["image"],
                }
            },
            "application/json": {"schema": JsonImage.model_json_schema()},
        },
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


@router.post("/classify", response_model=ClassifyAnswer, openapi_extra=ONE_IMAGE)
async def classify(request: Request) -> Response:
    """Classify one image: the body itself, a multipart part `image`, or base64 in JSON. No URLs are fetched.

    Any picture at all gets one of the model's labels: it cannot say "none of these".
    """
    parts = parts_of(request)
    model, ask = _ask(request, parts)
    check_room(parts, parts.models.find(model), ask)
    image = bodies.one_image(request, await read(request, _body_limit(request, parts.settings.max_image_bytes)))
    with parts.admission.admit(images=1, size=len(image)):
        return answers.one(
            await unless_client_leaves(request, _classify(parts, model, image, ask, request_id(request)))
        )


@router.post("/classify/batch", response_model=BatchAnswer, openapi_extra=MANY_IMAGES)
async def classify_batch(request: Request) -> Response:
    """Classify several images, the multipart parts `image`, answered in their order.

    An image that cannot be answered has its error in its place; the others are answered all the same.
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
    """Of which model, and what."""
    query = bodies.query(request, ClassifyQuery)
    classes = len(parts.models.find(query.model).spec.classes)
    if query.top_k is not None and query.top_k > classes:
        raise InvalidOption("top_k", query.top_k, f"between 1 and {classes}, the model's classes")
    top_k = query.top_k or min(DEFAULT_TOP_K, classes)
    return query.model, ask_of(request, parts, query.threshold, query.deadline_ms, top_k, query.passes)


def _body_limit(request: Request, image_limit: int) -> int:
    """Bytes of a body with an image of ``image_limit`` bytes in it: base64 and multipart take more than the image."""
    kind = bodies.content_type(request)
    if kind == "application/json":
        return image_limit * 4 // 3 + 1024
    return image_limit + 1024 if kind == bodies.MULTIPART else image_limit
