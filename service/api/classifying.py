"""Shared by all classification routes: limits and options."""

from __future__ import annotations

from starlette.requests import Request

from service.api.dependencies import Parts
from service.api.request_context import arrival, request_id
from service.engine.answer import Answer, Ask
from service.engine.engine import Engine
from service.errors import BadRequest, ImageTooLarge, LowfirstError


def ask_of(
    request: Request,
    parts: Parts,
    threshold: float | None,
    deadline_ms: float | None,
    top_k: int,
    passes: bool = False,
    names_version: bool = False,
) -> Ask:
    """The options of a request; without its own ``deadline_ms`` the one of the settings applies."""
    if deadline_ms is None:
        deadline_ms = parts.settings.deadline_ms
    return Ask(
        arrival=arrival(request),
        threshold=threshold,
        deadline=None if deadline_ms is None else deadline_ms / 1e3,
        top_k=top_k,
        passes=passes,
        request_id=request_id(request),
        names_version=names_version,
    )


def most_images(parts: Parts) -> int:
    """Most images of one request: more than may be in flight could never be admitted."""
    return min(parts.settings.max_batch_images, parts.settings.max_images_in_flight)


def check_room(parts: Parts, engine: Engine, ask: Ask) -> None:
    """Check, before a body is read, that ``engine`` could answer one image.

    Raises:
        Busy: there is no room.
        DeadlinePassed: no answer is possible in time.
    """
    parts.admission.check()
    try:
        engine.check_in_time(ask)
    except LowfirstError as error:
        parts.metrics.image_errors.labels(error.code).inc()
        raise


async def classify_image(parts: Parts, engine: Engine, image: bytes, ask: Ask) -> Answer:
    """The answer of ``engine`` to one encoded image. Raises as ``Engine.classify``, and immediately:

    ImageTooLarge: more bytes than one image may have.
    BadRequest: no bytes.

    Errors are counted here, because an error within a batch is not an error of the request.
    """
    try:
        _check_size(image, parts.settings.max_image_bytes)
        trial = parts.models.trial
        answer = await (engine.classify(image, ask) if trial is None else trial.classify(engine, image, ask))
    except LowfirstError as error:
        engine.recent.fail(ask.arrival)
        parts.metrics.image_errors.labels(error.code).inc()
        raise
    if parts.traces is not None:
        parts.traces.answered(answer)
    return answer


def _check_size(image: bytes, limit: int) -> None:
    if len(image) > limit:
        raise ImageTooLarge(
            f"image has {len(image)} bytes; the limit is {limit}", field="image", value=len(image), bound=limit
        )
    if not image:
        raise BadRequest("image has 0 bytes", field="image", value=0)
