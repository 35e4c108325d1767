"""Bytes -> pixels. The container is checked before anything is decoded, and photographs are cropped before resizing.

Formats are JPEG, PNG, WebP, GIF and BMP. Grey, palette, CMYK, alpha (over white) and 16 bits become 8-bit RGB; EXIF
orientation is applied; of an animation the first frame is used.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import TypeGuard

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from service.errors import ImageTooLarge
from service.images.formats.picture import Picture
from service.images.formats.reading import read
from service.images.formats.webp import LOSSLESS_BYTES, WebP
from service.images.helper import HELPER
from service.images.pixels import (
    PIXEL_BYTES,
    Part,
    Pixels,
    check_memory,
    memory,
    pixels,
    scale_of,
    whole,
)
from service.images.torchvision_decoders import webp_decoder
from service.images.transforms import Preprocessing

# Most seconds and bytes for decoding in the calling thread; the helper process decodes images beyond that.
DEAR_SECONDS = 0.25
DEAR_MEMORY = 60_000_000

# Seconds of a core after which what such a thread decoded is refused: eight times the worst case, for slow cores. The
# thread cannot be ended, so until the worst case is known better all images of that kind are the helper process's.
LATE_SECONDS = 2.0
DISTRUST_SECONDS = 60.0

# torchvision's decoder, where there is one: half the time of Pillow's, which treats all as animations.
DECODE_WEBP = webp_decoder()
AS_RGB = 3
RGB_BYTES = 3

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


class DecodedLate(ImageTooLarge):
    """It took a thread longer than any image of its kind was known to."""


_distrusted: dict[str, float] = {}  # kinds of pictures, until when: on the clock of ``time.monotonic``


class TakesLong(Exception):
    """The helper process would decode the image, and the caller does not want to wait for it."""


def decode(data: bytes, preprocessing: Preprocessing, *, waits: bool = True) -> Tensor:
    """An encoded photograph -> its central square, uint8 (3, crop, crop), RGB.

    Channels are last in memory: ``permute(1, 2, 0)`` is contiguous. It runs in the calling thread alone if
    ``torch.get_num_threads()`` is 1; a slow image (see ``is_dear``) is decoded in a helper process meanwhile.

    Raises:
        UnsupportedImage: an unsupported format or kind.
        ImageTooLarge: too many pixels for its kind, too many parts, or too slow to decode (TookTooLong in the helper
            process, DecodedLate here).
        InvalidImage: truncated or corrupt.
        Busy: it is slow, and too many slow images wait.
        TakesLong: it is slow, and ``waits`` is false.
    """
    picture = read(data)
    part = Part.of(picture, preprocessing)
    check_memory(picture, memory(picture, part))
    if _is_dear(picture, part):
        if not waits:
            raise TakesLong
        found = HELPER.pixels(data, preprocessing)
    else:
        found = _here(picture, part)
    crop = preprocessing.crop
    start = (part.side - crop) // 2
    square = np.ascontiguousarray(resize(found, part.side)[start : start + crop, start : start + crop])
    turn = ORIENTATIONS.get(picture.orientation)
    if turn is not None:
        square = np.array(Image.fromarray(square).transpose(turn))
    return torch.from_numpy(square.transpose(2, 0, 1))


def is_dear(data: bytes, preprocessing: Preprocessing) -> bool:
    """Whether ``decode`` may take more than ``DEAR_SECONDS`` or ``DEAR_MEMORY``, and so waits for the helper process.

    Costs a walk over the container, tens of microseconds. Raises as ``decode`` for problems of the container.
    """
    picture = read(data)
    return _is_dear(picture, Part.of(picture, preprocessing))


def stack(images: Sequence[Tensor]) -> Tensor:
    """Results of ``decode`` as one uint8 (B, 3, crop, crop), channels last; nothing is reordered."""
    return torch.stack([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2)


def photograph(data: bytes) -> Image.Image:
    """An encoded photograph -> all of it, upright, 8-bit RGB, for augmentation; decoded here, even if slow.

    A JPEG whose pixels would take more than ``DEAR_MEMORY`` is decoded at a half, a quarter or an eighth of its size.

    Raises: as ``decode``, except Busy.
    """
    picture = read(data)
    shorter, most = min(picture.width, picture.height), DEAR_MEMORY / PIXEL_BYTES
    fits = picture.pixels <= most
    scale = 1 if fits else scale_of(picture, int(shorter * (most / picture.pixels) ** 0.5 / 2))
    size = (0, 0, picture.width, picture.height)
    check_memory(picture, memory(picture, Part(scale, size, shorter, 1)))
    image = whole(picture, scale)
    turn = ORIENTATIONS.get(picture.orientation)
    return image if turn is None else image.transpose(turn)


def resize(pixels: Pixels, side: int) -> Pixels:
    """To (side, side, 3), antialiased: in a fifth of the time that PIL takes."""
    batch = torch.from_numpy(pixels.reshape(1, *pixels.shape).transpose(0, 3, 1, 2))  # channels last
    resized = interpolate(batch, (side, side), mode="bilinear", antialias=True)
    square: Pixels = resized.numpy()[0].transpose(1, 2, 0)
    return square


def _is_dear(picture: Picture, part: Part) -> bool:
    needed = _webp_memory(picture) if _is_torchvisions(picture) else memory(picture, part)
    is_distrusted = bool(_distrusted) and _distrusted.get(picture.kind, 0.0) > time.monotonic()
    return is_distrusted or picture.seconds > DEAR_SECONDS or needed > DEAR_MEMORY


def _here(picture: Picture, part: Part) -> Pixels:
    """``part``, decoded in the calling thread. Raises as ``pixels`` does, and DecodedLate, however it ended."""
    began = time.thread_time()
    try:
        by_torchvision = _webp(picture, part)
        return pixels(picture, part) if by_torchvision is None else by_torchvision
    finally:
        _check_time(picture, time.thread_time() - began)


def _check_time(picture: Picture, seconds: float) -> None:
    if seconds <= LATE_SECONDS:
        return
    _distrusted[picture.kind] = time.monotonic() + DISTRUST_SECONDS
    raise DecodedLate(
        f"image, a {picture.kind}, took {seconds:.1f} s to decode; the limit is {LATE_SECONDS:g}",
        field="image",
        value=round(seconds, 1),
        bound=LATE_SECONDS,
    )


def _is_torchvisions(picture: Picture) -> TypeGuard[WebP]:
    return DECODE_WEBP is not None and isinstance(picture, WebP) and picture.is_opaque_still


def _webp_memory(picture: WebP) -> int:
    """Its pixels, and what is cut out of them or a lossless one's own."""
    return picture.pixels * int(RGB_BYTES + (LOSSLESS_BYTES if picture.is_lossless else RGB_BYTES))


def _webp(picture: Picture, part: Part) -> Pixels | None:
    """The part of a WebP that torchvision decodes; None of what Pillow is for."""
    if DECODE_WEBP is None or not _is_torchvisions(picture):
        return None
    left, top, right, bottom = part.box
    with suppress(RuntimeError):  # corrupt, or a build without the format: Pillow knows
        all_of_it = DECODE_WEBP(torch.frombuffer(bytearray(picture.encoded), dtype=torch.uint8), AS_RGB)
        return all_of_it.numpy().transpose(1, 2, 0)[top:bottom, left:right]
    return None
