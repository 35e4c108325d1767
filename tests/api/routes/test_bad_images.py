"""Bytes that are no image a server should decode: a 4xx in the one shape, and the next request is served."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from PIL import Image

pytestmark = pytest.mark.anyio

RAW = {"Content-Type": "image/jpeg"}


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int) -> bytes:
    """A PNG file whose header claims that size, with a few pixels in it."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


@pytest.fixture(scope="module")
def bad(jpeg: bytes) -> dict[str, bytes]:
    """Bad images by what is wrong with them."""
    return {
        "truncated": jpeg[: len(jpeg) // 2],
        "head only": jpeg[:20],
        "corrupt": jpeg[:200] + bytes(reversed(jpeg[200:])),
        "text": b"Dear server, this is a photograph of a church.",
        "html": b"<html><body>404</body></html>",
        "zeros": bytes(100_000),
        "one byte": b"\xff",
        "header of 30000x30000": png(30_000, 30_000),
        "header of 0x0": png(0, 0),
        "pixels missing": png(1000, 1000),
        "pdf": b"%PDF-1.7\n" + bytes(1000),
    }


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("truncated", 400),
        ("head only", 400),
        ("corrupt", 400),
        ("text", 415),
        ("html", 415),
        ("zeros", 415),
        ("one byte", 415),
        ("header of 30000x30000", 413),
        ("header of 0x0", 400),
        ("pixels missing", 400),
        ("pdf", 415),
    ],
)
@pytest.mark.parametrize("form", ["raw", "multipart"])
async def test_a_bad_image_is_refused_and_the_next_is_served(
    client: httpx.AsyncClient,
    error_of: Callable[..., dict[str, Any]],
    jpeg: bytes,
    bad: dict[str, bytes],
    name: str,
    status: int,
    form: str,
) -> None:
    body: dict[str, Any] = (
        {"content": bad[name], "headers": RAW} if form == "raw" else {"files": {"image": ("photograph.jpg", bad[name])}}
    )
    codes = {400: "invalid_image", 413: "image_too_large", 415: "unsupported_image"}
    error = error_of(await client.post("/classify", **body), status, codes[status])
    assert error["field"] == "image"
    assert (await client.post("/classify", content=jpeg, headers=RAW)).status_code == 200


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "RGBA", "LA", "I;16"])
async def test_an_odd_but_valid_image_is_classified(client: httpx.AsyncClient, mode: str) -> None:
    file = io.BytesIO()
    Image.new("RGB" if mode == "CMYK" else "L", (40, 30)).convert(mode).save(file, "JPEG" if mode == "CMYK" else "PNG")
    response = await client.post("/classify", content=file.getvalue(), headers={"Content-Type": "image/x-odd"})
    assert response.status_code == 200, response.text


async def test_many_bad_images_do_not_use_up_places(client: httpx.AsyncClient, bad: dict[str, bytes]) -> None:
    for body in [*bad.values()] * 5:
        await client.post("/classify", content=body, headers=RAW)
    queue = (await client.get("/stats")).json()["queue"]
    assert queue == {"low": 0, "high": 0, "images_in_flight": 0, "bytes_in_flight": 0}
