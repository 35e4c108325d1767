"""Small files that claim or take far more than they show: pixels, parts, scans; each of the kind its name says."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable

from tests.images.encoding import SMALL, chunk, encoded, patched, picture, png, riff

# Header bytes that claim more pixels than there are, and how many they claim.
JPEG_FRAME = SMALL["JPEG"].index(b"\xff\xc0")
CMYK_FRAME = SMALL["CMYK JPEG"].index(b"\xff\xc0")
FINE = encoded(picture(40, 30), "JPEG", progressive=True, subsampling=0)
FINE_FRAME = FINE.index(b"\xff\xc2")
BOMBS = {
    "JPEG": (patched(SMALL["JPEG"], JPEG_FRAME + 5, struct.pack(">HH", 30_000, 30_000)), 30_000**2),
    "progressive JPEG": (patched(FINE, FINE_FRAME + 5, struct.pack(">HH", 7000, 7000)), 7000**2),
    "strip JPEG": (patched(SMALL["CMYK JPEG"], CMYK_FRAME + 5, struct.pack(">HH", 400, 60_000)), 24_000_000),
    "PNG": (png(30_000, 30_000, 8, 6, bytes(30_000)), 30_000**2),
    "grey PNG": (png(8000, 7999, 8, 4, bytes(8000)), 8000 * 7999),
    "GIF": (patched(SMALL["GIF"], 6, struct.pack("<HH", 30_000, 30_000)), 30_000**2),
    "BMP": (patched(SMALL["BMP"], 18, struct.pack("<II", 30_000, 30_000)), 30_000**2),
    "WEBP": (patched(SMALL["WEBP"], 24, b"\xff\x3f\x00" * 2), 16_384**2),
    "VP8 WEBP": (patched(encoded(picture(9, 9), "WEBP"), 26, struct.pack("<HH", 16_000, 16_000)), 16_000**2),
    "lossless WEBP": (patched(SMALL["lossless WEBP"], 21, struct.pack("<I", 0x0FFFFFFF)), 16_384**2),
    "frame GIF": (
        b"GIF89a\x0a\0\x0a\0\0\0\0!\xf9\x04\x08\0\0\0\0," + struct.pack("<4HBBB", 0, 0, 65_535, 65_535, 0, 8, 0),
        65_535**2,
    ),
}


def with_scans(count: int) -> bytes:
    """A progressive JPEG whose first scan comes again and again, to the same coefficients."""
    data = SMALL["progressive JPEG"]
    first = data.index(b"\xff\xda")
    end = first + 14 + re.search(rb"\xff[^\x00]", data[first + 14 :]).start()  # type: ignore[union-attr]
    more = count - data.count(b"\xff\xda")
    return data[:end] + data[first:end] * more + data[end:]


GIF = encoded(picture(40, 30).quantize(16), "GIF")
FRAME = GIF.index(b",", 13 + 48)

# Real pictures with so many parts: how to make one, and what they are called.
PARTS: dict[str, tuple[Callable[[int], bytes], str]] = {
    "JPEG segments": (lambda count: b"\xff\xd8" + b"\xff\xfe\0\3x" * count + SMALL["JPEG"][2:], "segments"),
    "JPEG EXIF": (lambda count: b"\xff\xd8" + b"\xff\xe1\0\x09Exif\0\0x" * count + FINE[2:], "segments"),
    "PNG chunks": (lambda count: SMALL["PNG"][:33] + chunk(b"abCd", b"") * count + SMALL["PNG"][33:], "chunks"),
    "PNG pixels": (lambda count: SMALL["PNG"][:33] + chunk(b"IDAT", b"") * count + SMALL["PNG"][33:], "chunks"),
    "GIF comments": (lambda count: GIF[:FRAME] + b"!\xfe" + b"\1x" * count + b"\0" + GIF[FRAME:], "blocks"),
    "GIF extensions": (lambda count: GIF[:FRAME] + b"!\xfe\0" * count + GIF[FRAME:], "blocks"),
    "GIF zeros": (lambda count: GIF[:FRAME] + b"\0" * count + GIF[FRAME:], "blocks"),
    "WebP chunks": (lambda count: SMALL["WEBP"] + riff(b"abcd", b"") * count, "chunks"),
}
