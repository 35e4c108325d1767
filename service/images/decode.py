"""Bytes -> pixels. Headers are checked before a pixel is decoded, and photographs are cropped before they are resized.

What is read: JPEG, PNG, WebP, GIF and BMP; grey, palette, CMYK, alpha (over white) and 16 bits become 8-bit RGB;
EXIF orientation is applied; of an animation the first frame is taken.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from traceback import clear_frames

import numpy as np
import torch
import torchvision  # noqa: F401  registers its decoders
from numpy.typing import NDArray
from PIL import ExifTags, Image, PngImagePlugin, UnidentifiedImageError
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.WebPImagePlugin import WebPImageFile
from torch import Tensor
from torch.nn.functional import interpolate

from service.errors import ImageTooLarge, InvalidImage, UnsupportedImage
from service.images.transforms import Box, Preprocessing

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")

# What time allows. PIL looks at the header, warns beyond this and raises at twice as many.
MAX_PIXELS = Image.MAX_IMAGE_PIXELS = 64_000_000
PngImagePlugin.MAX_TEXT_MEMORY = 8_000_000

# What decoding one image may take beside its bytes and a decoder's copy of them, and what a pixel takes: PIL's own four
# bytes, the same again for each conversion, and what some decoders keep beside them.
MAX_MEMORY = 60_000_000
PIXEL_BYTES = 4
DECODER_BYTES = {"WEBP": 8, "GIF": 4}
COEFFICIENT_BYTES = 2
PLAIN_MODES = ("RGB", "L", "CMYK")  # averaged as they are

# torchvision's decoders, where there are any: one call without Python's lock. A pixel takes three bytes, of a lossless
# WebP four more. The one for PNG is not used: in torchvision 0.29 a file whose pixels are damaged ends the process.
Decoder = Callable[[Tensor, int], Tensor]
DECODE_JPEG: Decoder | None = getattr(torch.ops.image, "decode_jpeg", None)
DECODE_WEBP: Decoder | None = getattr(torch.ops.image, "decode_webp", None)
AS_RGB = 3
RGB_BYTES = 3
LOSSLESS_BYTES = 4

# What PIL decoded is first averaged over n x n pixels, n as large as leaves this many times the crop's side.
REDUCING_GAP = 2

# (height, width, 3). In NumPy, which cuts without giving Python's lock away: each time it is waited for again.
Pixels = NDArray[np.uint8]

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

    Channels come last in memory: ``permute(1, 2, 0)`` is contiguous. It runs in the calling thread alone where
    ``torch.get_num_threads()`` is 1.

    Raises:
        UnsupportedImage: no format that is read.
        ImageTooLarge: more pixels than its kind may have.
        InvalidImage: truncated or corrupt.
    """
    crop = preprocessing.crop
    with _open(data) as image:
        original = image.size
        box, side = preprocessing.source_square(*_draft(image, preprocessing.resize))
        pixels = _by_torchvision(image, data, original, box)
        if pixels is None:
            factor = max(1, (box[2] - box[0]) // (REDUCING_GAP * side))
            pixels = np.array(_part(image, box, original, factor))
        start = (side - crop) // 2
        square = np.ascontiguousarray(resize(pixels, side)[start : start + crop, start : start + crop])
        turn = _turn(image)
        if turn is not None:
            square = np.array(Image.fromarray(square).transpose(turn))
        return torch.from_numpy(square.transpose(2, 0, 1))


def stack(images: Sequence[Tensor]) -> Tensor:
    """What ``decode`` gave, as one uint8 (B, 3, crop, crop): channels last as they are, nothing is reordered."""
    return torch.stack([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2)


def photograph(data: bytes) -> Image.Image:
    """An encoded photograph -> all of it, upright, 8-bit RGB, for augmentation. Raises as ``decode`` does.

    A JPEG of more pixels than memory allows comes at a half, a quarter or an eighth of its size.
    """
    with _open(data) as image:
        original = image.size
        pixels = image.width * image.height
        if pixels * PIXEL_BYTES > MAX_MEMORY:
            _draft(image, int(min(image.size) * math.sqrt(MAX_MEMORY / PIXEL_BYTES / pixels) / 2))
        whole = _part(image, (0, 0, *image.size), original)
        turn = _turn(image)
        return whole if turn is None else whole.transpose(turn)


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
    except (InvalidImage, MemoryError):
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


def _draft(image: ImageFile, shorter: int) -> tuple[float, float]:
    """Have a JPEG decoded at the smallest of its scales that leaves the shorter side ``shorter`` pixels.

    Gives width and height at that scale: fractions, as the last block of pixels need not be full.
    """
    drafted = image.draft(None, (shorter, shorter))
    return image.size if drafted is None else drafted[1][2:]


def _by_torchvision(image: ImageFile, data: bytes, original: tuple[int, int], box: Box) -> Pixels | None:
    """The part in ``box`` where torchvision is the faster one; None of what PIL is for."""
    decoder, beside = None, 0.0
    if isinstance(image, JpegImageFile) and image.mode in ("RGB", "L") and image.size == original:  # not at a fraction
        decoder, beside = DECODE_JPEG, _decoder_bytes(image)
    elif isinstance(image, WebPImageFile) and image.mode == "RGB" and not image.is_animated:
        decoder, beside = DECODE_WEBP, LOSSLESS_BYTES if b"VP8L" in data else 0
    if decoder is None:
        return None
    left, top, right, bottom = box
    pixels, kept = image.width * image.height, RGB_BYTES * (right - left) * (bottom - top)
    _check_memory(image, original, RGB_BYTES * pixels + max(int(beside * pixels), kept))
    with suppress(RuntimeError):  # corrupt, an animation of one frame, or a build without the format: PIL knows
        whole = decoder(torch.frombuffer(bytearray(data), dtype=torch.uint8), AS_RGB)
        return whole.numpy().transpose(1, 2, 0)[top:bottom, left:right]
    return None


def _part(image: ImageFile, box: Box, original: tuple[int, int], factor: int = 1) -> Image.Image:
    """The part of ``image`` in ``box``, 8-bit RGB, averaged over ``factor`` x ``factor`` pixels, whole ones."""
    is_plain = image.mode in PLAIN_MODES and not image.has_transparency_data
    left, top, right, bottom = box
    width, height = (right - left) // factor * factor, (bottom - top) // factor * factor
    box = left, top, left + width, top + height
    needed = PIXEL_BYTES * (image.width * image.height + (0 if is_plain else width * height))
    _check_memory(image, original, needed + int(original[0] * original[1] * _decoder_bytes(image)))
    if is_plain:
        return _rgb(image.reduce(factor, box))
    return _rgb(_interpolable(image, box)).reduce(factor)


def _check_memory(image: ImageFile, original: tuple[int, int], needed: int) -> None:
    if needed > MAX_MEMORY:
        pixels = original[0] * original[1]
        what = f"image is {original[0]}x{original[1]}, {pixels} pixels, a {image.format} of mode {image.mode}"
        raise _too_large(what, pixels, pixels * MAX_MEMORY // needed)


def _decoder_bytes(image: ImageFile) -> float:
    """Memory that the format's decoder keeps for each pixel of the encoded image."""
    if isinstance(image, JpegImageFile) and image.info.get("progressive"):
        samples = [horizontal * vertical for _, horizontal, vertical, _ in image.layer]
        return COEFFICIENT_BYTES * sum(samples) / max(samples)  # all coefficients, until the last scan
    return DECODER_BYTES.get(image.format or "", 0)


def _interpolable(image: ImageFile, box: Box) -> Image.Image:
    """The part in ``box``; palettes, bits and 16-bit samples as a mode whose pixels may be mixed. Closes ``image``."""
    part = image.crop(box)
    image.close()
    if part.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(part) >> 8).astype(np.uint8))
    if part.has_transparency_data:
        return part if part.mode == "RGBA" else part.convert("RGBA")
    return part.convert("RGB") if part.mode in ("P", "1") else part


def _rgb(image: Image.Image) -> Image.Image:
    """Any mode -> RGB, transparent parts over white."""
    if image.mode != "RGBA":
        return image if image.mode == "RGB" else image.convert("RGB")
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image)
    return white


def _turn(image: ImageFile) -> Image.Transpose | None:
    """What brings a decoded image upright, by its EXIF orientation; None where that is 1, corrupt or missing."""
    try:
        return ORIENTATIONS.get(int(image.getexif().get(ExifTags.Base.Orientation, 1)))
    except Exception:  # a photograph is worth more than its metadata
        return None


def resize(pixels: Pixels, side: int) -> Pixels:
    """To (side, side, 3), antialiased: in a fifth of the time that PIL takes."""
    batch = torch.from_numpy(pixels.reshape(1, *pixels.shape).transpose(0, 3, 1, 2))  # channels last
    resized = interpolate(batch, (side, side), mode="bilinear", antialias=True)
    square: Pixels = resized.numpy()[0].transpose(1, 2, 0)
    return square
