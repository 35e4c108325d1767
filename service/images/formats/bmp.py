"""BMP: its header, and how many bytes its rows take."""

from __future__ import annotations

import struct

from service.images import cost
from service.images.formats.picture import Picture, check_size, cut_short, unsupported

SIGNATURE = b"BM"
CORE = 12  # the size of OS/2's header, whose fields are of 16 bits
HEADERS = (CORE, 40, 52, 56, 64, 108, 124)
RAW, RLE8, RLE4, BITFIELDS = 0, 1, 2, 3
DEPTHS = (1, 4, 8, 16, 24, 32)


def read(data: bytes) -> Picture:
    """Raises:
    UnsupportedImage: a header, depth or compression that is not read.
    ImageTooLarge: too many pixels.
    InvalidImage: cut short.
    """
    if len(data) < 26:
        raise cut_short(data)
    start, size = struct.unpack_from("<II", data, 10)
    if size not in HEADERS:
        raise unsupported(f"BMP with a header of {size} bytes", f"one of {', '.join(map(str, HEADERS))}")
    if len(data) < 14 + size:
        raise cut_short(data)
    compression = RAW
    if size == CORE:
        width, height, _, bits = struct.unpack_from("<4H", data, 18)
    else:
        width, height, _, bits, compression = struct.unpack_from("<IiHHI", data, 18)
        height = abs(height)
    check_size(width, height)
    if compression not in (RAW, RLE8, RLE4, BITFIELDS) or bits not in DEPTHS:
        raise unsupported(f"BMP of {bits} bits and compression {compression}", "1 to 32 bits, compression 0 to 3")
    pixels = width * height
    if compression in (RLE8, RLE4):
        # Two bytes make a pixel or more, or end a row: what is beyond makes none, and takes Pillow as long.
        encoded = data[: start + 2 * (pixels + 2 * height + 2)]
        return Picture(
            kind="run-length BMP",
            width=width,
            height=height,
            encoded=encoded,
            seconds=cost.run_length(len(encoded), pixels),
        )
    if start + (width * bits + 31) // 32 * 4 * height > len(data):
        raise cut_short(data)
    return Picture(
        kind=f"BMP of {bits} bits", width=width, height=height, encoded=data, seconds=cost.bmp(len(data), pixels)
    )
