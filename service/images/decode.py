"""Bytes -> pixels. Headers are checked before a pixel is decoded, and photographs are cropped before they are resized.

What is read: JPEG, PNG, WebP, GIF, BMP and TIFF; grey, palette, CMYK, alpha (over white) and 16 bits become
8-bit RGB; EXIF orientation is applied; of an animation the first frame is taken.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

from service.errors import ImageTooLarge, InvalidImage, UnsupportedImage
from service.images.transforms import Preprocessing

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")

# A baseline JPEG is decoded at a smaller scale line by line; every other format needs all its pixels in memory.
MAX_JPEG_PIXELS = 64_000_000
MAX_PIXELS = 8_000_000

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
        ImageTooLarge: more pixels than its format's limit.
        InvalidImage: truncated or corrupt.
    """
    crop = preprocessing.crop
    with _open(data) as image:
        orientation = _orientation(image)
        image.draft(None, (preprocessing.resize, preprocessing.resize))
        box = preprocessing.source_box(*image.size)
        square = _rgb(_narrow(image, box), (crop, crop))
        if orientation in ORIENTATIONS:
            square = square.transpose(ORIENTATIONS[orientation])
    return torch.from_numpy(np.array(square)).permute(2, 0, 1).contiguous()


def photograph(data: bytes) -> Image.Image:
    """An encoded photograph -> all of it, upright, 8-bit RGB, for augmentation. Raises as ``decode`` does."""
    with _open(data) as image:
        orientation = _orientation(image)
        whole = _rgb(image, None)
        return whole.transpose(ORIENTATIONS[orientation]) if orientation in ORIENTATIONS else whole


@contextmanager
def _open(data: bytes) -> Iterator[Image.Image]:
    """The image with its header checked; whatever the decoder raises inside becomes an ``InvalidImage``."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(image)
            yield image
    except InvalidImage:
        raise
    except UnidentifiedImageError as error:
        raise UnsupportedImage(
            f"image is {len(data)} bytes of no known format; it must be one of {', '.join(FORMATS)}",
            field="image",
            bound=list(FORMATS),
        ) from error
    except Exception as error:  # decoders raise whatever they like on corrupt input
        raise InvalidImage(f"image cannot be decoded: {error}", field="image") from error


def _check_size(image: Image.Image) -> None:
    pixels = image.width * image.height
    streams = image.format == "JPEG" and not image.info.get("progressive")
    limit = MAX_JPEG_PIXELS if streams else MAX_PIXELS
    if pixels > limit:
        raise ImageTooLarge(
            f"image is {image.width}x{image.height}, {pixels} pixels; a {image.format} may have {limit}",
            field="image",
            value=pixels,
            bound=limit,
        )


def _orientation(image: Image.Image) -> int:
    return int(image.getexif().get(ExifTags.Base.Orientation, 1))


def _narrow(image: Image.Image, box: tuple[float, float, float, float]) -> Image.Image:
    return image.crop((int(box[0]), int(box[1]), int(box[2]) + 1, int(box[3]) + 1))


def _rgb(image: Image.Image, size: tuple[int, int] | None) -> Image.Image:
    image = image.convert("RGB")
    return image if size is None else image.resize(size, Image.Resampling.BILINEAR)
