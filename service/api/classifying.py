"""What every route that classifies images shares: its bounds, and what it asks."""

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
    """What a request wants of its images; without a ``deadline_ms`` of its own it has the one of the settings."""
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
    """How many images one request may hold: more than may be in flight could never be admitted."""
    return min(parts.settings.max_batch_images, parts.settings.max_images_in_flight)


def check_room(parts: Parts, engine: Engine, ask: Ask) -> None:
    """Whether ``engine`` could do what is asked with one image; before a body is read.

    Raises:
        Busy: there is no room for it.
        DeadlinePassed: it could not be in time.
    """
    parts.admission.check()
    try:
        engine.check_in_time(ask)
    except LowfirstError as error:
        parts.metrics.image_errors.labels(error.code).inc()
        raise


async def classify_image(parts: Parts, engine: Engine, image: bytes, ask: Ask) -> Answer:
    """The answer of ``engine`` to one encoded image. Raises as ``Engine.classify``, and at once:

    ImageTooLarge: more bytes than one image may have.
    BadRequest: none.

    Its error is counted here: that of one among several is no request's.
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
