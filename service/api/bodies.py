"""Reads images from bodies, and fields from JSON and queries."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from python_multipart.multipart import parse_options_header
from starlette.requests import Request

from service.api.schemas import JsonImage
from service.errors import BadRequest, InvalidOption, UnsupportedBody

RAW = ("application/octet-stream",)
MULTIPART = "multipart/form-data"
MAX_OTHER_PARTS = 16
MAX_PART_HEAD = 8192
VERBATIM = (b"binary", b"8bit", b"7bit")
FORMS = "image/*, application/octet-stream, multipart/form-data with a part `image`, or application/json"
JSON = "application/json"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # some editors and Windows programs write it at the start of UTF-8
FIELD = "image"

# Values in a JSON body, and objects and arrays that may be nested in it. Each of a million unknown keys would become an
# error of a kilobyte, and each comma an element.
MAX_JSON_VALUES = 256

Schema = TypeVar("Schema", bound=BaseModel)


def content_type(request: Request) -> str:
    """The media type of the body, without parameters, in lower case."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def one_image(request: Request, body: bytes) -> bytes:
    """The encoded image in a body of any kind.

    Raises:
        UnsupportedBody: an unsupported content type.
        BadRequest: broken multipart or base64, or no image. RequestValidationError: see ``parse``.
        InvalidOption: more than one image.
    """
    kind = content_type(request)
    if kind.startswith("image/") or kind in RAW:
        return body
    if kind == JSON:
        return image_in_json(request, body)
    if kind == MULTIPART:
        return many_images(request, body, most=1)[0]
    raise unsupported(kind, FORMS)


def image_in_json(request: Request, body: bytes) -> bytes:
    """The encoded image in a JSON body. Raises as ``one_image``."""
    kind = content_type(request)
    if kind != JSON:
        raise unsupported(kind, JSON)
    return from_base64(parse(JsonImage, body).image, FIELD)


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


def parse(schema: type[Schema], body: bytes, most_values: int = MAX_JSON_VALUES) -> Schema:
    """Parse a JSON body, with or without a byte order mark.

    Raises:
        InvalidOption: more than ``most_values`` values. BadRequest: more arrays or objects than that. Both are raised
            before parsing.
        RequestValidationError: broken JSON, answered with 400, or a wrong field, with 422.
    """
    if _has_more(body, b",", most_values):
        raise InvalidOption("values", f"more than {most_values}", f"at most {most_values} in the JSON")
    if _has_more(body, b"[", most_values) or _has_more(body, b"{", most_values):
        raise BadRequest(f"the JSON has more than {most_values} arrays or objects")
    with _validation():
        return schema.model_validate_json(body.removeprefix(BYTE_ORDER_MARK))


def _has_more(body: bytes, sign: bytes, most: int) -> bool:
    """Whether ``body`` contains ``sign`` more than ``most`` times; as fast as memory if it does not."""
    at = -1
    for _ in range(most + 1):
        at = body.find(sign, at + 1)
        if at < 0:
            return False
    return True


def query(request: Request, schema: type[Schema]) -> Schema:
    """The fields of the query; the last value counts if a name is repeated. Raises RequestValidationError: a wrong
    field."""
    with _validation():
        return schema.model_validate(dict(request.query_params) if request.scope["query_string"] else {})


@contextmanager
def _validation() -> Iterator[None]:
    """Convert pydantic's first error to FastAPI's."""
    try:
        yield
    except ValidationError as error:
        raise RequestValidationError(error.errors()[:1]) from error


def _parts(body: bytes, boundary: bytes, most: int) -> list[tuple[str, bytes]]:
    """Names and contents of a multipart body's parts (RFC 2046, section 5.1).

    The body is split, not parsed byte by byte, so hostile bytes cost no more than honest ones. At most ``most`` parts
    are returned.
    """
    if not boundary:
        raise _broken("Content-Type names no boundary")
    pieces = (b"\r\n" + body).split(b"\r\n--" + boundary, most + 1)[1:]
    closing = next((i for i, piece in enumerate(pieces) if piece.startswith(b"--")), None)
    if closing is None:
        raise _broken(f"it has more than {most} parts" if len(pieces) > most else "its closing boundary is missing")
    return [_part(piece) for piece in pieces[:closing]]


def _part(piece: bytes) -> tuple[str, bytes]:
    """Convert the bytes between two boundaries to name and content."""
    end = piece.find(b"\r\n\r\n", 0, MAX_PART_HEAD)
    padding, *lines = piece[: max(0, end)].split(b"\r\n")
    if end < 0 or padding.strip(b" \t"):
        raise _broken(f"the header of a part is missing or longer than {MAX_PART_HEAD} bytes")
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


def from_base64(text: str, field: str) -> bytes:
    """Decode base64, with or without line breaks, on its own or in a data URI (RFC 2397). Raises BadRequest
    otherwise."""
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:  # rare: the usual form should not pay for it
        pass
    if text[:5].lower() == "data:":
        head, _, text = text.partition(",")
        if not head.rstrip().lower().endswith(";base64"):
            raise BadRequest(f"{field} is a data URI without `;base64,` before its data", field=field)
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except ValueError as error:
        raise BadRequest(f"{field} is not base64: {error}", field=field) from error


def unsupported(given: str, expected: str) -> UnsupportedBody:
    """The error for a body of content type ``given``."""
    return UnsupportedBody(
        f"Content-Type is {given or 'missing'!r}; it must be {expected}",
        field="Content-Type",
        value=given,
        bound=expected,
    )
