"""Reads a request's body, with limits."""

from __future__ import annotations

import asyncio
from functools import partial

from starlette.requests import Request

from service.api.dependencies import parts_of
from service.api.exchange import exchange_of
from service.engine.arriving import Body
from service.errors import BadRequest, ClientLeft, ImageTooLarge, RequestTimeout, UnsupportedBody

IDENTITY = "identity"
MAX_DIGITS = 18
SLOWEST = 64 * 1024  # bytes per second that give a large body more time, so that 64 MiB may come over a slow line
NOW = 0.0  # on an event loop's clock, a time that is over


def whole_number(text: str) -> int | None:
    """The number in a header; None if it has other characters than digits, or too many."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= MAX_DIGITS else None


async def read(request: Request, limit: int) -> bytes:
    """Read the complete body.

    Received bytes count as bytes in flight until the body is complete. Announced bytes do not.

    Raises:
        UnsupportedBody: it is compressed, which could exceed any limit and would not shrink an image.
        ImageTooLarge: it exceeds ``limit`` bytes, as soon as that is known.
        BadRequest: Content-Length is not a number, or the body is not valid HTTP.
        RequestTimeout: it is not complete in time (``receive_timeout_seconds``).
        Busy: complete bodies, or those of clients that hold less, need its room.
        ClientLeft: the client disconnected before it was complete.
    """
    _check_head(request, limit)
    parts = parts_of(request)
    seconds = parts.settings.receive_timeout_seconds
    ends = asyncio.get_running_loop().time() + seconds
    timeout = asyncio.timeout_at(ends)
    body = Body(request.client.host if request.client else "", stop=partial(_stop, timeout))
    chunks: list[bytes] = []
    try:
        async with timeout:
            with parts.admission.arriving(body):
                while await _has_more(request, chunks):
                    parts.admission.arrived(body, len(chunks[-1]))
                    if body.size > limit:
                        raise _too_large(body.size, limit)
                    if body.size > SLOWEST:
                        timeout.reschedule(ends + body.size / SLOWEST)
    except TimeoutError as error:
        if body.refusal is not None:
            raise body.refusal from error
        raise RequestTimeout(
            f"{body.size} bytes of the body came in time; "
            f"it had {seconds:g} seconds and one more for each {SLOWEST} bytes",
            field="body",
            value=body.size,
            bound=seconds,
        ) from error
    whole = b"".join(chunks)
    if len(whole) > limit:
        raise _too_large(len(whole), limit)
    return whole


def _stop(timeout: asyncio.Timeout) -> None:
    """End the wait limited by ``timeout``."""
    if not timeout.expired():
        timeout.reschedule(NOW)


async def _has_more(request: Request, chunks: list[bytes]) -> bool:
    """Add the next piece of the body; returns whether more will follow."""
    message = await request.receive()
    if message["type"] == "http.disconnect":
        raise ClientLeft
    exchange = exchange_of(request.scope)
    if exchange is not None and exchange.broken is not None:
        raise exchange.broken
    chunks.append(message.get("body", b""))
    return bool(message.get("more_body", False))


def _check_head(request: Request, limit: int) -> None:
    """Check the head before the body is read. Raises as ``read``."""
    headers = request.headers
    encoding = headers.get("content-encoding", IDENTITY)
    if encoding.lower() != IDENTITY:
        raise UnsupportedBody(
            f"Content-Encoding is {encoding!r}; it must be {IDENTITY}",
            field="Content-Encoding",
            value=encoding,
            bound=IDENTITY,
        )
    length = headers.get("content-length")
    if length is None:
        return
    announced = whole_number(length)
    if announced is None:
        raise BadRequest(f"Content-Length is {length!r}; it must be a number", field="Content-Length", value=length)
    if announced > limit:
        raise _too_large(announced, limit)


def _too_large(size: int, limit: int) -> ImageTooLarge:
    return ImageTooLarge(f"the body has {size} bytes; the limit is {limit}", field="body", value=size, bound=limit)
