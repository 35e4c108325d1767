"""An encoded picture -> its pixels, by simplejpeg (libjpeg-turbo) or Pillow; without PyTorch.

JPEG is simplejpeg's: it is faster than Pillow and torchvision to the same pixels, decodes at a fraction of the size,
raises where libjpeg warns, and writes nothing to standard error, as torchvision's does.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from traceback import clear_frames

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.ImageFile import ImageFile
from simplejpeg import decode_jpeg

from service.errors import ImageTooLarge, InvalidImage
from service.images.formats.jpeg import Jpeg
from service.images.formats.picture import MAX_PIXELS, Picture, cut_short
from service.images.formats.png import Png
from service.images.transforms import Box, Preprocessing

Image.MAX_IMAGE_PIXELS = MAX_PIXELS

# What decoding one image may take beside its bytes: of Pillow's pixels four bytes each, the same again for each
# conversion, and what some decoders keep beside them.
MAX_MEMORY = 260_000_000
PIXEL_BYTES = 4
JPEG_BYTES = {1: 6, 3: 6, 4: 16}  # by components; two decodes are compared where libjpeg warned
PLAIN_MODES = ("RGB", "L", "CMYK")  # averaged as they are

# libjpeg decodes at these fractions, without the detail that is averaged away anyhow.
SCALES = (8, 4, 2)

# What Pillow decoded is first averaged over n x n pixels, n as large as leaves this many times the crop's side.
REDUCING_GAP = 2

# uint8 (height, width, 3), RGB. NumPy cuts without giving Python's lock away: each time it is waited for again.
Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Part:
    """The part of a picture that becomes a square of ``side`` pixels.

    Attributes:
        scale: a JPEG is decoded at 1/scale; ``box`` is of that size.
        factor: Pillow's pixels are averaged over factor x factor.
    """

    scale: int
    box: Box
    side: int
    factor: int

    @classmethod
    def of(cls, picture: Picture, preprocessing: Preprocessing) -> Part:
        """The source square, at the smallest of a JPEG's scales whose shorter side is not below ``resize``."""
        scale = scale_of(picture, preprocessing.resize)
        box, side = preprocessing.source_square(picture.width / scale, picture.height / scale)
        factor = 1 if isinstance(picture, Jpeg) else max(1, (box[2] - box[0]) // (REDUCING_GAP * side))
        return cls(scale, box, side, factor)


def scale_of(picture: Picture, shorter: int) -> int:
    """How many times smaller than it is a JPEG may be decoded, for ``shorter`` pixels of its shorter side; else 1."""
    if not isinstance(picture, Jpeg):
        return 1
    times = min(picture.width, picture.height) // max(shorter, 1)
    return next((scale for scale in SCALES if scale <= times), 1)


def memory(picture: Picture, part: Part) -> int:
    """Bytes that decoding ``part`` takes at most."""
    if isinstance(picture, Jpeg):
        return int(picture.pixels * (JPEG_BYTES[picture.components] / part.scale**2 + picture.decoder_bytes))
    left, top, right, bottom = part.box
    converted = (right - left) * (bottom - top) * PIXEL_BYTES
    return int(picture.pixels * (PIXEL_BYTES + picture.decoder_bytes)) + converted


def check_memory(picture: Picture, needed: int) -> None:
    """Raises: ImageTooLarge: it takes more than ``MAX_MEMORY``."""
    if needed > MAX_MEMORY:
        bound = picture.pixels * MAX_MEMORY // needed
        raise ImageTooLarge(
            f"image is {picture.width}x{picture.height}, {picture.pixels} pixels, a {picture.kind}; the limit of its "
            f"kind is {bound}",
            field="image",
            value=picture.pixels,
            bound=bound,
        )


def pixels(picture: Picture, part: Part) -> Pixels:
    """``part``, averaged by its factor.

    Raises:
        InvalidImage: rows are missing, or the decoder refuses.
    """
    left, top, right, bottom = part.box
    with translated(picture):
        if isinstance(picture, Jpeg):
            return _jpeg(picture, part.scale)[top:bottom, left:right]
        return np.array(_by_pillow(picture, part.box, part.factor))


def whole(picture: Picture, scale: int = 1) -> Image.Image:
    """All of it, 8-bit RGB, a JPEG at 1/scale. Raises as ``pixels`` does."""
    with translated(picture):
        if isinstance(picture, Jpeg):
            return Image.fromarray(_jpeg(picture, scale))
        return _by_pillow(picture, (0, 0, picture.width, picture.height), 1)


@contextmanager
def translated(picture: Picture) -> Iterator[None]:
    """Whatever a decoder raises on corrupt input becomes an ``InvalidImage``."""
    try:
        yield
    except (InvalidImage, MemoryError):
        raise
    except Exception as error:
        clear_frames(error.__traceback__)  # they hold pixels for as long as the error lives
        raise InvalidImage(f"image of {len(picture.encoded)} bytes is corrupt or truncated", field="image") from error


def _jpeg(picture: Jpeg, scale: int) -> Pixels:
    """At the first warning it is looked whether rows are missing; damage that leaves them there is decoded."""
    height, width = -(-picture.height // scale), -(-picture.width // scale)
    turbo = partial(_turbo, cmyk=picture.components == 4, height=height, width=width)
    try:
        return turbo(picture.encoded, strict=True)
    except ValueError:
        pass
    endings = picture.endings()
    try:
        first, second = (turbo(each, strict=False) for each in endings)
    except ValueError:  # a sampling that TurboJPEG does not know, or broken
        first, second = (_pillow_jpeg(each, scale) for each in endings)
    if not np.array_equal(first, second):
        raise cut_short(picture.encoded)
    return first


def _turbo(data: bytes, strict: bool, cmyk: bool, height: int, width: int) -> Pixels:
    """``strict``: a warning raises, too."""
    colours = "CMYK" if cmyk else "RGB"
    decoded: Pixels = decode_jpeg(data, colours, min_height=height, min_width=width, strict=strict)
    if not cmyk:
        return decoded
    inverted = np.invert(decoded)  # as Adobe writes it
    return np.array(Image.frombuffer("CMYK", (width, height), inverted.tobytes(), "raw", "CMYK", 0, 1).convert("RGB"))


def _pillow_jpeg(data: bytes, scale: int) -> Pixels:
    with closing(Image.open(io.BytesIO(data), formats=["JPEG"])) as image:
        if scale > 1:
            image.draft(None, (max(1, image.width // scale), max(1, image.height // scale)))
        return np.array(_rgb(image))


def _by_pillow(picture: Picture, box: Box, factor: int) -> Image.Image:
    """The part in ``box``, 8-bit RGB, averaged over ``factor`` x ``factor`` pixels, whole ones."""
    left, top, right, bottom = box
    box = left, top, left + (right - left) // factor * factor, top + (bottom - top) // factor * factor
    formats = ["PNG", "WEBP", "GIF", "BMP"]
    with closing(Image.open(io.BytesIO(picture.encoded), formats=formats)) as image:
        if image.size != (picture.width, picture.height):
            raise ValueError(f"{image.size} pixels, and not {picture.width}x{picture.height}")
        image.load()
        if isinstance(picture, Png):
            picture.check_rows(image)
        if image.mode in PLAIN_MODES and not image.has_transparency_data:
            return _rgb(image.reduce(factor, box))
        return _rgb(_interpolable(image, box)).reduce(factor)


def _interpolable(image: ImageFile, box: Box) -> Image.Image:
    """The part in ``box``; palettes, bits and 16-bit samples as a mode whose pixels may be mixed. Closes ``image``."""
    # a mask for alpha that nothing was written to, as Windows leaves it
    is_opaque = image.format == "BMP" and image.mode == "RGBA" and image.getchannel("A").getextrema() == (0, 0)
    transparent = image.info.get("transparency")
    part = image.crop(box)
    image.close()
    if part.mode.startswith("I;16"):
        samples = np.asarray(part)
        grey = (samples >> 8).astype(np.uint8)
        if transparent is not None:
            grey[samples == transparent] = 255
        return Image.fromarray(grey)
    if is_opaque:
        return part.convert("RGB")
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
