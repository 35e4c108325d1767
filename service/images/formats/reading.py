"""Detects the format of the bytes, and walks over the container."""

from __future__ import annotations

from service.errors import UnsupportedImage
from service.images.formats import bmp, gif, jpeg, png, webp
from service.images.formats.picture import Picture

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")


def read(data: bytes) -> Picture:
    """Inspect an encoded image in one pass over its container: nothing is decoded or decompressed.

    Raises:
        UnsupportedImage: an unknown format.
        ImageTooLarge: too many pixels, scans, segments or chunks.
        InvalidImage: truncated or corrupt, as far as the container shows.
    """
    if data.startswith(jpeg.SIGNATURE):
        return jpeg.read(data)
    if data.startswith(png.SIGNATURE):
        return png.read(data)
    if webp.is_webp(data):
        return webp.read(data)
    if data.startswith(gif.SIGNATURES):
        return gif.read(data)
    if data.startswith(bmp.SIGNATURE):
        return bmp.read(data)
    raise UnsupportedImage(
        f"image is {len(data)} bytes of an unknown format; it must be one of {', '.join(FORMATS)}",
        field="image",
        bound=list(FORMATS),
    )
