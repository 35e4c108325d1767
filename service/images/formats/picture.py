"""What is known about an encoded picture before decoding, and the limits for every format."""

from __future__ import annotations

from dataclasses import dataclass

from service.errors import ImageTooLarge, InvalidImage, UnsupportedImage

MAX_PIXELS = 64_000_000

# Segments of a JPEG, chunks of a PNG or WebP, blocks before a GIF's pixels.
# libpng writes 16 MB in 2,000 chunks.
MAX_PARTS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """An encoded picture whose container has been walked.

    Attributes:
        kind: how messages name it: "progressive JPEG", "PNG of mode RGBA".
        encoded: what a decoder is given. Text, colour profiles, EXIF and further frames are left out where the decoder
            would look at them.
        orientation: as EXIF has it, 1 to 8.
        decoder_bytes: what the decoder keeps in memory for each pixel, beside the pixels.
        seconds: of one core, to decode it at worst; see ``service.images.cost``.
    """

    kind: str
    width: int
    height: int
    encoded: bytes
    orientation: int = 1
    decoder_bytes: float = 0.0
    seconds: float = 0.0

    @property
    def pixels(self) -> int:
        return self.width * self.height


def corrupt(what: str) -> InvalidImage:
    return InvalidImage(f"image is corrupt: {what}", field="image")


def cut_short(data: bytes) -> InvalidImage:
    return InvalidImage(f"image of {len(data)} bytes is cut short", field="image", value=len(data))


def unsupported(what: str, bound: str) -> UnsupportedImage:
    return UnsupportedImage(f"image is {what}; {bound} is read", field="image", value=what, bound=bound)


def check_size(width: int, height: int) -> None:
    """Raises: ImageTooLarge: more pixels than are decoded. InvalidImage: none."""
    if not width or not height:
        raise corrupt(f"it is {width}x{height} pixels")
    if width * height > MAX_PIXELS:
        raise too_many("pixels", width * height, MAX_PIXELS, f"{width}x{height}, ")


def check_parts(count: int, what: str, bound: int = MAX_PARTS) -> None:
    """Raises: ImageTooLarge: more than ``bound``."""
    if count > bound:
        raise ImageTooLarge(f"image has more than {bound} {what}; the limit is {bound}", field="image", bound=bound)


def too_many(what: str, count: int, bound: int, prefix: str = "") -> ImageTooLarge:
    message = f"image is {prefix}{count} {what}; the limit is {bound}"
    return ImageTooLarge(message, field="image", value=count, bound=bound)
