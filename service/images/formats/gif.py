"""GIF: what stands before the first frame, and that frame."""

from __future__ import annotations

import struct

from service.images import cost
from service.images.formats.picture import Picture, check_parts, check_size, cut_short

SIGNATURES = (b"GIF87a", b"GIF89a")
EXTENSION, FRAME, CONTROL = 0x21, 0x2C, 0xF9
DECODER_BYTES = 4.0


def read(data: bytes) -> Picture:
    """Walk to the first frame; comments and other extensions are left out.

    Raises:
        ImageTooLarge: too many pixels, or blocks before the frame.
        InvalidImage: no frame.
    """
    if len(data) < 13:
        raise cut_short(data)
    at = head = 13 + _palette_bytes(data[10])
    control, count = b"", 0
    while at + 1 < len(data) and data[at] != FRAME:
        count += 1
        check_parts(count, "blocks before its pixels")
        if data[at] != EXTENSION:  # stray bytes between blocks, as some programs leave them
            at += 1
            continue
        start, label = at, data[at + 1]
        at += 2
        while at < len(data) and data[at]:
            at += 1 + data[at]
            count += 1
            check_parts(count, "blocks before its pixels")
        at += 1
        if label == CONTROL:
            control = data[start:at]
    if at + 10 > len(data):
        raise cut_short(data)
    left, top, width, height = struct.unpack_from("<4H", data, at + 1)
    canvas_width, canvas_height = struct.unpack_from("<2H", data, 6)
    width, height = max(canvas_width, left + width), max(canvas_height, top + height)
    check_size(width, height)
    return Picture(
        kind="GIF",
        width=width,
        height=height,
        encoded=b"".join((data[:head], control, memoryview(data)[at:])),
        decoder_bytes=DECODER_BYTES,
        seconds=cost.gif(len(data) - at, width * height),
    )


def _palette_bytes(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0
