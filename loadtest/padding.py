"""One photograph in bodies of several sizes, which all decode to the same pixels."""

from __future__ import annotations

import io

from PIL import Image

START = b"\xff\xd8"  # a JPEG's first two bytes
COMMENT = b"\xff\xfe"
LENGTH_BYTES = 2
HEAD = len(COMMENT) + LENGTH_BYTES
MOST = HEAD + 0xFFFF - LENGTH_BYTES  # bytes that a comment's segment takes at most

SIDE = 224  # pixels of the shorter side
QUALITIES = range(90, 5, -5)


def small(photograph: bytes, size: int) -> bytes:
    """The photograph as a JPEG that can be padded to ``size`` bytes, in the best quality that allows it.

    Raises:
        ValueError: none does.
    """
    with Image.open(io.BytesIO(photograph)) as opened:
        image = opened.convert("RGB")
    scale = SIDE / min(image.size)
    image = image.resize((round(scale * image.width), round(scale * image.height)))
    for quality in QUALITIES:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        if file.tell() <= size - HEAD:
            return file.getvalue()
    raise ValueError(f"the photograph takes more than {size} bytes at {image.width}x{image.height}")


def padded(jpeg: bytes, size: int) -> bytes:
    """The JPEG with comments of zeros after its first two bytes, ``size`` bytes in all. A decoder skips them.

    Raises:
        ValueError: it is not that much smaller that a comment has room.
    """
    missing = size - len(jpeg)
    if missing and missing < HEAD:
        raise ValueError(f"a JPEG of {len(jpeg)} bytes cannot be padded to {size}: a comment takes {HEAD} at least")
    segments = []
    while missing:
        part = min(missing, MOST)
        if 0 < missing - part < HEAD:
            part -= HEAD  # the last one needs room, too
        segments.append(COMMENT + (part - len(COMMENT)).to_bytes(LENGTH_BYTES, "big") + bytes(part - HEAD))
        missing -= part
    return START + b"".join(segments) + jpeg[len(START) :]
