"""Real encoded bytes, made in memory; PIL's own resize is the reference, which PyTorch's equals but for rounding."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.images.decode import decode
from service.images.transforms import Preprocessing

Pixels = NDArray[np.int64]  # (height, width, 3)

PREPROCESSING = Preprocessing(resize=225, crop=192)


def encoded(image: Image.Image, image_format: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, image_format, **options)
    return stream.getvalue()


def picture(width: int = 300, height: int = 240, seed: int = 0) -> Image.Image:
    """Smooth colours, different everywhere, so that a shift or a turn is seen."""
    colours = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize((width, height), Image.Resampling.BICUBIC)


def pixels_of(image: Image.Image) -> Pixels:
    return np.asarray(image.convert("RGB")).astype(np.int64)


def decoded(data: bytes, preprocessing: Preprocessing = PREPROCESSING) -> Pixels:
    return decode(data, preprocessing).permute(1, 2, 0).numpy().astype(np.int64)


def boxed(image: Image.Image) -> Pixels:
    """The reference: PIL's own antialiased resize of the source square, and its centre."""
    box, side = PREPROCESSING.source_square(*image.size)
    resized = image.convert("RGB").crop(box).resize((side, side), Image.Resampling.BILINEAR)
    start = (side - 192) // 2
    return pixels_of(resized.crop((start, start, start + 192, start + 192)))


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, bits: int, colour: int, rows: bytes, *chunks: bytes) -> bytes:
    """A PNG of any bit depth; ``rows`` are raw samples, ``chunks`` stand before the pixels."""
    stride = max(1, len(rows) // height)
    filtered = b"".join(b"\0" + rows[at : at + stride] for at in range(0, len(rows), stride))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(filtered, 1))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + body + chunk(b"IEND", b"")


def riff(kind: bytes, body: bytes) -> bytes:
    """A chunk of a WebP file, or all of it; ``body`` is of even length."""
    return kind + struct.pack("<I", len(body)) + body


def patched(data: bytes, at: int, value: bytes) -> bytes:
    return data[:at] + value + data[at + len(value) :]


def oriented(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[274] = orientation
    return exif


SMALL = {
    "JPEG": encoded(picture(40, 30), "JPEG", exif=oriented(6)),
    "progressive JPEG": encoded(picture(40, 30), "JPEG", progressive=True),
    "CMYK JPEG": encoded(picture(40, 30).convert("CMYK"), "JPEG"),
    "PNG": encoded(picture(40, 30), "PNG", exif=oriented(6)),
    "palette PNG": encoded(picture(40, 30).quantize(16), "PNG", transparency=bytes(range(16))),
    "GIF": encoded(picture(40, 30), "GIF", save_all=True, append_images=[Image.new("RGB", (40, 30))]),
    "WEBP": encoded(picture(40, 30), "WEBP", exif=oriented(6)),
    "lossless WEBP": encoded(picture(40, 30).convert("RGBA"), "WEBP", lossless=True),
    "BMP": encoded(picture(40, 30), "BMP"),
}
