"""Images out of request bodies, bounded while they are read."""

from __future__ import annotations

import base64
import binascii

from pydantic import ValidationError
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import Field, File, FormParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from service.api.schemas import JsonImage
from service.errors import BadRequest, ImageTooLarge, InvalidOption, UnsupportedBody

RAW = ("application/octet-stream",)
MULTIPART = "multipart/form-data"
IN_MEMORY = {"MAX_MEMORY_FILE_SIZE": float("inf"), "UPLOAD_ERROR_ON_BAD_CTE": True}
FORMS = "image/*, application/octet-stream, multipart/form-data with a part `image`, or application/json"
FIELD = "image"


def content_type(request: Request) -> str:
    """The media type of the body, without parameters, in lower case."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def announced_bytes(request: Request, limit: int) -> int:
    """How many bytes the body may take: as announced, or ``limit`` when nothing is.

    Raises:
        ImageTooLarge: more are announced than ``limit``.
        BadRequest: the header is no number.
    """
    header = request.headers.get("content-length")
    if header is None:
        return limit
    if not header.isdecimal():
        raise BadRequest(f"Content-Length is {header!r}; it must be a number", field="Content-Length", value=header)
    if int(header) > limit:
        raise _too_large(int(header), limit)
    return int(header)


async def read(request: Request, limit: int) -> bytes:
    """The whole body.

    Raises:
        ImageTooLarge: it exceeds ``limit`` bytes, as soon as it does.
        BadRequest: the client left before it was complete.
    """
    chunks: list[bytes] = []
    size = 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if size > limit:
                raise _too_large(size, limit)
            chunks.append(chunk)
    except ClientDisconnect as error:
        raise BadRequest("the body ended before it was complete") from error
    return b"".join(chunks)


def one_image(request: Request, body: bytes) -> bytes:
    """The encoded image in a body of any of the three forms.

    Raises:
        UnsupportedBody: a content type that is none of them.
        BadRequest: broken multipart, JSON or base64, or no image.
        InvalidOption: more than one image.
    """
    kind = content_type(request)
    if kind.startswith("image/") or kind in RAW:
        return body
    if kind == "application/json":
        return _from_json(body)
    if kind == MULTIPART:
        return many_images(request, body, most=1)[0]
    raise UnsupportedBody(
        f"Content-Type is {kind or 'missing'!r}; it must be {FORMS}", field="Content-Type", value=kind, bound=FORMS
    )


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
        raise UnsupportedBody(
            f"Content-Type is {header or 'missing'!r}; it must be {MULTIPART}", field="Content-Type", value=header
        )
    parts = _parts(body, parameters.get(b"boundary"))
    images = [value for name, value in parts if name == FIELD]
    if not images:
        found = ", ".join(sorted({name for name, _ in parts})) or "none"
        raise BadRequest(f"no part is named {FIELD!r}; the parts are: {found}", field=FIELD)
    if len(images) > most:
        raise InvalidOption(FIELD, len(images), f"at most {most} parts")
    return images


def _parts(body: bytes, boundary: bytes | None) -> list[tuple[str, bytes]]:
    parts: list[tuple[str, bytes]] = []
    ended: list[bool] = []

    def keep(part: Field | File) -> None:
        name = (part.field_name or b"").decode(errors="replace")
        if isinstance(part, Field):
            parts.append((name, part.value or b""))
        else:
            part.file_object.seek(0)
            parts.append((name, part.file_object.read()))

    try:
        parser = FormParser(MULTIPART, keep, keep, lambda: ended.append(True), boundary=boundary, config=IN_MEMORY)
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise BadRequest(f"the multipart body is broken: {error}") from error
    if not ended:
        raise BadRequest("the multipart body is broken: its closing boundary is missing")
    return parts


def _from_json(body: bytes) -> bytes:
    try:
        parsed = JsonImage.model_validate_json(body)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise BadRequest(f"the JSON body is wrong: {where} {first['msg']}".replace(":  ", ": "), field=FIELD) from error
    try:
        return base64.b64decode(parsed.image, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadRequest(f"{FIELD} is not base64: {error}", field=FIELD) from error


def _too_large(size: int, limit: int) -> ImageTooLarge:
    return ImageTooLarge(f"the body has {size} bytes; the limit is {limit}", field="body", value=size, bound=limit)
