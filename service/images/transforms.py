"""How a photograph becomes the square a network sees."""

from __future__ import annotations

from dataclasses import dataclass

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# The paper's test crop: shorter side to 300, centre crop 256.
RESIZE_RATIO = 300 / 256

# By how much of a resized pixel a whole number of pixels may differ from what they become.
ROUNDING = 1 / 8

Box = tuple[int, int, int, int]  # left, top, right, bottom


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """Resize the shorter side to ``resize`` pixels, keep the central ``crop`` x ``crop``, normalise by channel.

    Attributes:
        resize: pixels of the shorter side, at least ``crop``.
        crop: side of the square, the network's high resolution; even.
        mean, std: of the RGB channels scaled to 0..1.
    """

    resize: int
    crop: int
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    @classmethod
    def at(cls, resolution: int) -> Preprocessing:
        """The usual test transform for networks of high resolution ``resolution``."""
        return cls(resize=round(resolution * RESIZE_RATIO), crop=resolution)

    def source_square(self, width: float, height: float) -> tuple[Box, int]:
        """The part of a ``width`` x ``height`` photograph to resize, and to what side; the crop is the centre of that.

        The smallest source square that maps whole source pixels to whole output pixels. Rounding what the crop shows
        would change the scale: of 224 pixels it would leave 192 for a crop of 192, nothing would be smoothed, and the
        shipped model would be 0.7 points worse on Imagenette.
        """
        scale = min(width, height) / self.resize  # pixels of the photograph to one of the square

        def is_whole(side: int) -> bool:
            return abs(side * scale - round(side * scale)) <= ROUNDING * scale

        side = next(filter(is_whole, range(self.crop, self.resize, 2)), self.resize)
        shown = max(1, round(side * scale))
        left, top = round((width - shown) / 2), round((height - shown) / 2)
        return (left, top, left + shown, top + shown), side
