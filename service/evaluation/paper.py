"""The paper's results, to stand beside ours: Cheng et al., BMVC 2019; ImageNet, top-1 of a single centre crop."""

from __future__ import annotations

from dataclasses import dataclass

SOURCE = "Cheng, Xiao, Wang, Huang, Zhang: High Frequency Residual Learning for Multi-Scale Image Classification"


@dataclass(frozen=True, slots=True)
class PaperRow:
    """A row of the paper's: a network tested at ``pixels``, or as a cascade at ``threshold``.

    Attributes:
        mmacs: mean millions of multiply-adds an image.
        top1: per cent.
        exit_rate: per cent; it is not printed there, and follows from the costs.
    """

    kind: str
    pixels: str
    mmacs: float
    top1: float
    threshold: float | None = None
    exit_rate: float | None = None


def _single(pixels: int, mmacs: float, top1: float) -> PaperRow:
    return PaperRow("single-scale", str(pixels), mmacs, top1)


def _multi(pixels: str, threshold: float, mmacs: float, top1: float, exit_rate: float) -> PaperRow:
    return PaperRow("multi-scale", pixels, mmacs, top1, threshold, exit_rate)


ROWS: dict[str, tuple[PaperRow, ...]] = {
    "resnet18": (
        _single(224, 1827, 69.8),
        _single(256, 2386, 70.7),
        PaperRow("averaged", "128 + 256", 2983, 71.2),
        _multi("128/256", 0.48, 1413, 69.9, 65.8),
        _multi("128/256", 0.57, 1625, 70.7, 56.9),
        _multi("128/256", 0.66, 1811, 71.3, 49.1),
        _multi("128/256", 0.90, 2358, 71.9, 26.2),
    ),
    "mobilenet_v1_100": (
        _single(128, 186, 64.4),
        _single(192, 418, 69.1),
        _single(224, 569, 70.9),
        _single(256, 743, 71.2),
        _multi("128/256", 0.06, 186, 64.5, 100),
        _multi("128/256", 0.46, 417, 69.8, 68.9),
        _multi("128/256", 0.67, 566, 71.9, 48.9),
        _multi("128/256", 0.90, 739, 72.7, 25.6),
    ),
    "mobilenet_v1_075": (
        _single(224, 325, 68.4),
        _single(256, 425, 69.1),
        _multi("128/256", 0.57, 321, 69.3, 49.6),
        _multi("128/256", 0.83, 425, 70.8, 25.1),
    ),
    "mobilenet_v1_050": (
        _single(224, 149, 63.7),
        _single(256, 195, 64.2),
        _multi("128/256", 0.47, 148, 64.6, 49.3),
        _multi("128/256", 0.71, 195, 67.0, 25.3),
    ),
    "mobilenet_v1_025": (
        _single(224, 41, 50.6),
        _single(256, 54, 52.6),
        _multi("128/256", 0.28, 41, 52.5, 48.7),
        _multi("128/256", 0.46, 54, 56.4, 24.5),
    ),
    "densenet121": (
        _single(224, 2834, 75.0),
        PaperRow("MSDNet", "", 1700, 75.0),
        _multi("112/224", 0.60, 1700, 75.0, 64.8),
        _multi("112/224", 0.95, 2800, 76.1, 26.0),
    ),
}

# What a network alone at its high resolution costs there: the measure of "of the single-scale network, %".
HIGH_MMACS = {
    "resnet18": 2386.0,
    "mobilenet_v1_100": 743.0,
    "mobilenet_v1_075": 425.0,
    "mobilenet_v1_050": 195.0,
    "mobilenet_v1_025": 54.0,
    "densenet121": 2834.0,
}

TABLES: dict[str, tuple[str, ...]] = {
    "Table 1: ResNet-18": ("resnet18",),
    "Table 2: MobileNetV1": ("mobilenet_v1_100", "mobilenet_v1_075", "mobilenet_v1_050", "mobilenet_v1_025"),
    "Table 3: DenseNet-121": ("densenet121",),
}
