"""How a photograph becomes the square a network sees."""

from __future__ import annotations

from dataclasses import dataclass

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# The paper's test crop: shorter side to 300, centre crop 256.
RESIZE_RATIO = 300 / 256


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

    def source_box(self, width: float, height: float) -> tuple[float, float, float, float]:
        """The part of a ``width`` x ``height`` photograph that becomes the crop: (left, top, right, bottom)."""
        side = min(width, height) * self.crop / self.resize
        left, top = (width - side) / 2, (height - side) / 2
        return left, top, left + side, top + side
