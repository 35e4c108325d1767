"""WebP: RIFF's chunks, of an animation the first frame."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from service.images import cost
from service.images.formats.exif import orientation
from service.images.formats.picture import Picture, check_parts, check_size, corrupt, cut_short

LOSSY, LOSSLESS, EXTENDED, FRAME = b"VP8 ", b"VP8L", b"VP8X", b"ANMF"

# Flags of the header, and what the chunks that make pixels say of the picture.
ALPHA, ANIMATION = 0x10, 0x02
PIXELS = {LOSSY: 0, LOSSLESS: 0, b"ALPH": ALPHA, b"ANIM": ANIMATION, FRAME: ANIMATION}

# Beside its pixels Pillow's way keeps two canvases of an animation, whether it is one or not.
DECODER_BYTES = 8.0
LOSSLESS_BYTES = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WebP(Picture):
    """Attributes: is_opaque_still: neither alpha nor an animation."""

    is_lossless: bool
    is_opaque_still: bool


def is_webp(data: bytes) -> bool:
    return data.startswith(b"RIFF") and data[8:12] == b"WEBP"


def read(data: bytes) -> WebP:
    """Walk the chunks; keep those of the pixels, of an animation those of the first frame.

    Raises:
        ImageTooLarge: too many pixels or chunks.
        InvalidImage: no pixels, or cut short.
    """
    features = exif = b""
    kept: list[bytes | memoryview] = []
    flags, size, is_lossless = 0, None, False
    for kind, chunk in _chunks(data):
        body = bytes(chunk[8:30])
        if kind == EXTENDED and not features:
            features = body[:10]
        elif kind == b"EXIF" and not exif:
            exif = bytes(chunk[8:])
        elif size is None and kind in PIXELS:
            kept.append(chunk)
            flags |= PIXELS[kind]
            if kind in (LOSSY, LOSSLESS, FRAME):
                size = _size(kind, body)
                is_lossless = LOSSLESS in (kind, body[16:20])
                flags |= ALPHA if kind == LOSSLESS and body[4] & 0x10 else 0
                if not features:
                    break  # what follows the pixels of a simple file is not part of it
    if size is None:
        raise cut_short(data)
    check_size(*size)
    if features:
        if len(features) < 10:
            raise corrupt("the header of a WebP is too short")
        flags |= features[0] & (ALPHA | ANIMATION)
        kept.insert(0, EXTENDED + struct.pack("<IB", 10, flags) + features[1:])
        size = 1 + int.from_bytes(features[4:7], "little"), 1 + int.from_bytes(features[7:10], "little")
        check_size(*size)
    body = b"".join((b"WEBP", *kept))
    return WebP(
        kind=f"{'lossless' if is_lossless else 'lossy'} WebP",
        width=size[0],
        height=size[1],
        encoded=b"RIFF" + struct.pack("<I", len(body)) + body,
        orientation=orientation(exif) if exif else 1,
        decoder_bytes=DECODER_BYTES + (LOSSLESS_BYTES if is_lossless else 0),
        seconds=cost.webp(len(body), size[0] * size[1], is_lossless),
        is_lossless=is_lossless,
        is_opaque_still=not flags,
    )


def _chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Each chunk's kind, and all of it with its header and padding; a cut one is not there."""
    view, at, count = memoryview(data), 12, 0
    while at + 8 <= len(data):
        count += 1
        check_parts(count, "chunks")
        end = at + 8 + int.from_bytes(data[at + 4 : at + 8], "little")
        if end > len(data):
            return
        yield data[at : at + 4], view[at : end + (end & 1)]
        at = end + (end & 1)


def _size(kind: bytes, body: bytes) -> tuple[int, int]:
    """Width and height as the first bytes of the pixels' chunk have them."""
    if kind == LOSSY and len(body) >= 10 and body[3:6] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", body, 6)
        return width & 0x3FFF, height & 0x3FFF
    if kind == LOSSLESS and len(body) >= 5 and body[0] == 0x2F:
        bits = int.from_bytes(body[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == FRAME and len(body) >= 12:
        return 1 + int.from_bytes(body[6:9], "little"), 1 + int.from_bytes(body[9:12], "little")
    raise corrupt("the pixels of a WebP have no header")
