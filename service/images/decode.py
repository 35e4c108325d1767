"""Bytes -> pixels. Headers are checked before a pixel is decoded, and photographs are cropped before they are resized.

What is read: JPEG, PNG, WebP, GIF and BMP; grey, palette, CMYK, alpha (over white) and 16 bits become 8-bit RGB;
EXIF orientation is applied; of an animation the first frame is taken.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator
from contextlib import closing, contextmanager
from traceback import clear_frames

import numpy as np
import torch
from PIL import ExifTags, Image, PngImagePlugin, UnidentifiedImageError
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from torch import Tensor

from service.errors import ImageTooLarge, InvalidImage, UnsupportedImage
from service.images.transforms import Preprocessing

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")

# What time allows. PIL looks at the header, warns beyond this and raises at twice as many.
MAX_PIXELS = Image.MAX_IMAGE_PIXELS = 64_000_000
PngImagePlugin.MAX_TEXT_MEMORY = 8_000_000

# What decoding one image may take beside its bytes, and what a pixel takes: PIL's own four bytes, the same again for
# each conversion, and what some decoders keep beside them.
MAX_MEMORY = 60_000_000
PIXEL_BYTES = 4
DECODER_BYTES = {"WEBP": 8, "GIF": 4}
COEFFICIENT_BYTES = 2
PLAIN_MODES = ("RGB", "L", "CMYK")  # resized as they are

Box = tuple[float, float, float, float]  # left, top, right, bottom

# How an image with each EXIF orientation is brought upright.
ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode(data: bytes, preprocessing: Preprocessing) -> Tensor:
    """An encoded photograph -> its central square, uint8 (3, crop, crop), RGB.

    Raises:
        UnsupportedImage: no format that is read.
        ImageTooLarge: more pixels than its kind may have.
        InvalidImage: truncated or corrupt.
    """
    size = (preprocessing.crop, preprocessing.crop)
    with _open(data) as image:
        orientation, original = _orientation(image), image.size
        box = preprocessing.source_box(*_reduce(image, preprocessing.resize))
        part, box = _part(image, box, original)
        square = _upright(_rgb(part.resize(size, Image.Resampling.BILINEAR, box)), orientation)
        # NumPy's copy runs in this thread alone; PyTorch's would wake, and wait for, a thread a core.
        return torch.from_numpy(np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1)))  # (3, crop, crop)


def photograph(data: bytes) -> Image.Image:
    """An encoded photograph -> all of it, upright, 8-bit RGB, for augmentation. Raises as ``decode`` does.

    A JPEG of more pixels than memory allows comes at a half, a quarter or an eighth of its size.
    """
    with _open(data) as image:
        orientation, original = _orientation(image), image.size
        pixels = image.width * image.height
        if pixels * PIXEL_BYTES > MAX_MEMORY:
            _reduce(image, int(min(image.size) * math.sqrt(MAX_MEMORY / PIXEL_BYTES / pixels) / 2))
        whole, _ = _part(image, (0, 0, *image.size), original)
        return _upright(_rgb(whole), orientation)


@contextmanager
def _open(data: bytes) -> Iterator[ImageFile]:
    """The image, its header checked; whatever a decoder raises on corrupt input becomes an ``InvalidImage``."""
    try:
        with closing(Image.open(io.BytesIO(data), formats=FORMATS)) as image:
            pixels = image.width * image.height
            if pixels > MAX_PIXELS:
                raise _too_large(f"image is {image.width}x{image.height}, {pixels} pixels", pixels, MAX_PIXELS)
            if image.format == "PNG":
                Image.open(io.BytesIO(data), formats=["PNG"]).verify()  # its checksums, which decoding passes over
            yield image
    except InvalidImage:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        pixels = int(re.findall(r"\d+", str(error))[0])
        raise _too_large(f"image has {pixels} pixels", pixels, MAX_PIXELS) from error
    except UnidentifiedImageError as error:
        if _looks_known(data):
            raise _corrupt(data) from error
        raise UnsupportedImage(
            f"image is {len(data)} bytes of no known format; it must be one of {', '.join(FORMATS)}",
            field="image",
            bound=list(FORMATS),
        ) from error
    except Exception as error:
        clear_frames(error.__traceback__)  # they hold pixels for as long as the error lives
        raise _corrupt(data) from error


def _looks_known(data: bytes) -> bool:
    """Whether the first bytes are those of a format that is read."""
    tests = (Image.OPEN[name][1] for name in FORMATS)
    return any(test is not None and bool(test(data[:16])) for test in tests)


def _corrupt(data: bytes) -> InvalidImage:
    return InvalidImage(f"image of {len(data)} bytes is corrupt or truncated", field="image")


def _too_large(what: str, pixels: int, limit: int) -> ImageTooLarge:
    return ImageTooLarge(f"{what}; the limit is {limit}", field="image", value=pixels, bound=limit)


def _reduce(image: ImageFile, shorter: int) -> tuple[float, float]:
    """Have a JPEG decoded at the smallest of its scales that leaves the shorter side ``shorter`` pixels.

    Gives width and height at that scale: fractions, as the last block of pixels need not be full.
    """
    drafted = image.draft(None, (shorter, shorter))
    return image.size if drafted is None else drafted[1][2:]


def _part(image: ImageFile, box: Box, original: tuple[int, int]) -> tuple[Image.Image, Box]:
    """Pixels that may be interpolated, of at least the part of ``image`` in ``box``; and where the box is in them."""
    left, top, right, bottom = box
    x, y, end_x, end_y = int(left), int(top), math.ceil(right), math.ceil(bottom)
    is_plain = image.mode in PLAIN_MODES and not image.has_transparency_data
    pixels = original[0] * original[1]
    needed = PIXEL_BYTES * (image.width * image.height + (0 if is_plain else (end_x - x) * (end_y - y)))
    needed += int(pixels * _decoder_bytes(image))
    if needed > MAX_MEMORY:
        what = f"image is {original[0]}x{original[1]}, {pixels} pixels, a {image.format} of mode {image.mode}"
        raise _too_large(what, pixels, pixels * MAX_MEMORY // needed)
    if is_plain:
        image.load()
        return image, box
    part = image.crop((x, y, end_x, end_y))
    image.close()
    return _interpolable(part), (left - x, top - y, right - x, bottom - y)


def _decoder_bytes(image: ImageFile) -> float:
    """Memory that the format's decoder keeps for each pixel of the encoded image."""
    if isinstance(image, JpegImageFile) and image.info.get("progressive"):
        samples = [horizontal * vertical for _, horizontal, vertical, _ in image.layer]
        return COEFFICIENT_BYTES * sum(samples) / max(samples)  # all coefficients, until the last scan
    return DECODER_BYTES.get(image.format or "", 0)


def _orientation(image: ImageFile) -> int:
    """EXIF orientation, 1 to 8; 1 where it is corrupt or missing."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # a photograph is worth more than its metadata
        return 1


def _interpolable(image: Image.Image) -> Image.Image:
    """Palettes, bits, transparent colours and 16-bit samples as a mode whose pixels may be mixed."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        return image if image.mode == "RGBA" else image.convert("RGBA")
    return image.convert("RGB") if image.mode in ("P", "1") else image


def _rgb(image: Image.Image) -> Image.Image:
    """Any mode -> RGB, transparent parts over white."""
    if image.mode != "RGBA":
        return image.convert("RGB")
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image)
    return white


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(ORIENTATIONS[orientation]) if orientation in ORIENTATIONS else image
