"""``POST /classify`` and ``POST /classify/batch``."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.routing import APIRoute

from service.api import bodies
from service.api.dependencies import Parts, parts_of
from service.api.error_handlers import detail
from service.api.request_context import arrival, request_id
from service.api.schemas import BatchAnswer, BatchError, ClassifyAnswer, ClassifyQuery, JsonImage
from service.engine.entry import Ask
from service.errors import BadRequest, ImageTooLarge, InvalidOption, LowfirstError

DEFAULT_TOP_K = 5
CLIENT_CLOSED_REQUEST = 499  # nginx's code for an answer that nobody reads

T = TypeVar("T")


class DirectRoute(APIRoute):
    """A route whose endpoint is given the request as it is.

    FastAPI documents its parameters but does not solve them, which took longer than all of ours together.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """What answers a request."""
        handler: Callable[[Request], Coroutine[Any, Any, Response]] = self.endpoint
        return handler


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
    ask = _ask(request, parts)
    limit = _body_limit(request, parts.settings.max_image_bytes)
    with parts.engine.admission.admit(images=1, size=bodies.announced_bytes(request, limit)):
        image = bodies.one_image(request, await bodies.read(request, limit))
        answer = await _unless_client_leaves(request, _classify(parts, image, ask, request_id(request)))
    return _json(answer)


@router.post("/classify/batch", response_model=BatchAnswer, openapi_extra=MANY_IMAGES)
async def classify_batch(request: Request) -> Response:
    """Classify several images, the multipart parts `image`, answered in their order.

    An image that cannot be answered has its error in its place; the others are answered all the same.
    """
    parts = parts_of(request)
    ask = _ask(request, parts)
    limit = parts.settings.max_batch_bytes
    most = min(parts.settings.max_batch_images, parts.settings.max_images_in_flight)  # more could never be admitted
    id_ = request_id(request)
    admission = parts.engine.admission
    with admission.admit(images=1, size=bodies.announced_bytes(request, limit)):
        images = bodies.many_images(request, await bodies.read(request, limit), most)
        with admission.admit(images=len(images) - 1):
            results = await _unless_client_leaves(
                request, asyncio.gather(*(_classify_or_error(parts, image, ask, id_) for image in images))
            )
    return _json(None if results is None else BatchAnswer(results=results))


async def _classify(parts: Parts, image: bytes, ask: Ask, id_: str) -> ClassifyAnswer:
    limit = parts.settings.max_image_bytes
    if len(image) > limit:
        raise ImageTooLarge(
            f"image has {len(image)} bytes; the limit is {limit}", field="image", value=len(image), bound=limit
        )
    if not image:
        raise BadRequest("image has 0 bytes", field="image", value=0)
    return ClassifyAnswer.of(await parts.engine.classify(image, ask), id_)


async def _classify_or_error(parts: Parts, image: bytes, ask: Ask, id_: str) -> ClassifyAnswer | BatchError:
    try:
        return await _classify(parts, image, ask, id_)
    except LowfirstError as error:
        return BatchError(error=detail(error, id_), status=error.status)


def _ask(request: Request, parts: Parts) -> Ask:
    query = bodies.query(request, ClassifyQuery)
    parts.check_model(query.model)
    classes = len(parts.engine.spec.classes)
    if query.top_k is not None and query.top_k > classes:
        raise InvalidOption("top_k", query.top_k, f"between 1 and {classes}, the model's classes")
    deadline_ms = query.deadline_ms if query.deadline_ms is not None else parts.settings.deadline_ms
    return Ask(
        arrival=arrival(request),
        threshold=query.threshold,
        deadline=None if deadline_ms is None else deadline_ms / 1e3,
        top_k=query.top_k or min(DEFAULT_TOP_K, classes),
        passes=query.passes,
    )


def _body_limit(request: Request, image_limit: int) -> int:
    """Bytes of a body with an image of ``image_limit`` bytes in it: base64 and multipart take more than the image."""
    kind = bodies.content_type(request)
    if kind == "application/json":
        return image_limit * 4 // 3 + 1024
    return image_limit + 1024 if kind == bodies.MULTIPART else image_limit


async def _unless_client_leaves(request: Request, work: Awaitable[T]) -> T | None:
    """What ``work`` gives, or None as soon as the client is gone: then its images are dropped where they stand."""
    working = asyncio.current_task()
    assert working is not None
    has_left = False

    def leave(_: asyncio.Task[None]) -> None:
        nonlocal has_left
        has_left = True
        working.cancel()

    leaving = asyncio.ensure_future(_client_left(request))
    leaving.add_done_callback(leave)
    try:
        return await work
    except asyncio.CancelledError:
        if not has_left or working.uncancel():  # somebody else cancelled
            raise
        return None
    finally:
        leaving.remove_done_callback(leave)
        leaving.cancel()


async def _client_left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _json(answer: ClassifyAnswer | BatchAnswer | None) -> Response:
    if answer is None:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    headers = {"Server-Timing": answer.server_timing} if isinstance(answer, ClassifyAnswer) else None
    return Response(answer.model_dump_json(), media_type="application/json", headers=headers)
