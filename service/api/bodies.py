"""What requests carry: images out of bodies, bounded while they are read, and the fields of queries."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from python_multipart.multipart import parse_options_header
from starlette.requests import ClientDisconnect, Request

from service.api.dependencies import parts_of
from service.api.schemas import JsonImage
from service.errors import BadRequest, ImageTooLarge, InvalidOption, RequestTimeout, UnsupportedBody

RAW = ("application/octet-stream",)
MULTIPART = "multipart/form-data"
MAX_OTHER_PARTS = 16
MAX_DIGITS = 18
MAX_PART_HEAD = 8192
SLOWEST = 64 * 1024  # bytes a second that give a large body more time, so that 64 MiB may come over a slow line
VERBATIM = (b"binary", b"8bit", b"7bit")
FORMS = "image/*, application/octet-stream, multipart/form-data with a part `image`, or application/json"
FIELD = "image"
IDENTITY = "identity"

Schema = TypeVar("Schema", bound=BaseModel)


def content_type(request: Request) -> str:
    """The media type of the body, without parameters, in lower case."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def whole_number(text: str) -> int | None:
    """The number that a header's digits are; None if they are none, or more than anything here can count."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= MAX_DIGITS else None


def announced_bytes(request: Request, limit: int) -> int:
    """How many bytes the body may take: as announced, or ``limit`` when nothing is.

    Raises:
        ImageTooLarge: more are announced than ``limit``.
        BadRequest: the header is no number.
    """
    header = request.headers.get("content-length")
    if header is None:
        return limit
    announced = whole_number(header)
    if announced is None:
        raise BadRequest(f"Content-Length is {header!r}; it must be a number", field="Content-Length", value=header)
    if announced > limit:
        raise _too_large(announced, limit)
    return announced


async def read(request: Request, limit: int) -> bytes:
    """The whole body.

    Raises:
        UnsupportedBody: it is compressed, which could grow beyond any limit and would gain an image nothing.
        ImageTooLarge: it exceeds ``limit`` bytes, as soon as it does.
        RequestTimeout: it is not complete in time (``receive_timeout_seconds``).
        BadRequest: the client left before it was complete.
    """
    encoding = request.headers.get("content-encoding", IDENTITY)
    if encoding.lower() != IDENTITY:
        raise UnsupportedBody(
            f"Content-Encoding is {encoding!r}; it must be {IDENTITY}",
            field="Content-Encoding",
            value=encoding,
            bound=IDENTITY,
        )
    chunks: list[bytes] = []
    size = 0
    seconds = parts_of(request).settings.receive_timeout_seconds
    ends = asyncio.get_running_loop().time() + seconds
    try:
        async with asyncio.timeout_at(ends) as timeout:
            async for chunk in request.stream():
                size += len(chunk)
                if size > limit:
                    raise _too_large(size, limit)
                chunks.append(chunk)
                if size > SLOWEST:
                    timeout.reschedule(ends + size / SLOWEST)
    except ClientDisconnect as error:
        raise BadRequest("the body ended before it was complete") from error
    except TimeoutError as error:
        raise RequestTimeout(
            f"{size} bytes of the body came in time; it had {seconds:g} seconds and one more for each {SLOWEST} bytes",
            field="body",
            value=size,
            bound=seconds,
        ) from error
    return b"".join(chunks)


def one_image(request: Request, body: bytes) -> bytes:
    """The encoded image in a body of any of the three forms.

    Raises:
        UnsupportedBody: a content type that is none of them.
        BadRequest: broken multipart or base64, or no image. RequestValidationError: see ``parse``.
        InvalidOption: more than one image.
    """
    kind = content_type(request)
    if kind.startswith("image/") or kind in RAW:
        return body
    if kind == "application/json":
        return _from_base64(parse(JsonImage, body).image)
    if kind == MULTIPART:
        return many_images(request, body, most=1)[0]
    raise unsupported(kind, FORMS)


def many_images(request: Request, body: bytes, most: int) -> list[bytes]:
    """The encoded images in the multipart parts named ``image``, with or without a file name, in order.

    Raises:
        UnsupportedBody: not multipart.
        BadRequest: broken multipart, or no image.
        InvalidOption: more than ``most`` images.
    """
    header = request.headers.get("content-type", "")
    kind, parameters = parse_options_header(header)
    if kind != MULTIPART.encode():
        raise unsupported(header, MULTIPART)
    parts = _parts(body, parameters.get(b"boundary", b""), most + MAX_OTHER_PARTS)
    images = [value for name, value in parts if name == FIELD]
    if not images:
        found = ", ".join(sorted({name for name, _ in parts})) or "none"
        raise BadRequest(f"no part is named {FIELD!r}; the parts are: {found}", field=FIELD)
    if len(images) > most:
        raise InvalidOption(FIELD, len(images), f"at most {most} parts")
    return images


def parse(schema: type[Schema], body: bytes) -> Schema:
    """A JSON body. Raises RequestValidationError: broken JSON, answered with 400, or a wrong field, with 422."""
    with _validation():
        return schema.model_validate_json(body)


def query(request: Request, schema: type[Schema]) -> Schema:
    """The query's fields, of several of one name the last. Raises RequestValidationError: a wrong field."""
    with _validation():
        return schema.model_validate(dict(request.query_params) if request.scope["query_string"] else {})


@contextmanager
def _validation() -> Iterator[None]:
    """Pydantic's errors as FastAPI's."""
    try:
        yield
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from error


def _parts(body: bytes, boundary: bytes, most: int) -> list[tuple[str, bytes]]:
    """Names and contents of a multipart body's parts (RFC 2046, section 5.1).

    Split, not parsed byte by byte: hostile bytes cost no more than honest ones. At most ``most`` parts are made.
    """
    if not boundary:
        raise _broken("Content-Type names no boundary")
    pieces = (b"\r\n" + body).split(b"\r\n--" + boundary, most + 1)[1:]
    closing = next((i for i, piece in enumerate(pieces) if piece.startswith(b"--")), None)
    if closing is None:
        raise _broken(f"it has more than {most} parts" if len(pieces) > most else "its closing boundary is missing")
    return [_part(piece) for piece in pieces[:closing]]


def _part(piece: bytes) -> tuple[str, bytes]:
    """What stands between two boundaries -> name and content."""
    end = piece.find(b"\r\n\r\n", 0, MAX_PART_HEAD)
    padding, *lines = piece[: max(0, end)].split(b"\r\n")
    if end < 0 or padding.strip(b" \t"):
        raise _broken(f"a part has no head of at most {MAX_PART_HEAD} bytes")
    head = {name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
    encoding = head.get(b"content-transfer-encoding", b"binary").lower()
    if encoding not in VERBATIM:
        raise _broken(f"Content-Transfer-Encoding is {encoding.decode(errors='replace')!r}; it must be binary")
    _, parameters = parse_options_header(head.get(b"content-disposition"))
    if b"name" not in parameters:
        raise _broken("a part has no name")
    return parameters[b"name"].decode(errors="replace"), piece[end + 4 :]


def _broken(why: str) -> BadRequest:
    return BadRequest(f"the multipart body is broken: {why}")


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise BadRequest(f"{FIELD} is not base64: {error}", field=FIELD) from error


def unsupported(given: str, expected: str) -> UnsupportedBody:
    """The error for a body of content type ``given``."""
    return UnsupportedBody(
        f"Content-Type is {given or 'missing'!r}; it must be {expected}",
        field="Content-Type",
        value=given,
        bound=expected,
    )


def _too_large(size: int, limit: int) -> ImageTooLarge:
    return ImageTooLarge(f"the body has {size} bytes; the limit is {limit}", field="body", value=size, bound=limit)
