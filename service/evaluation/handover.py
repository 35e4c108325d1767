"""What the last stage takes from the one before: how much of each sum comes from below, and whether it agrees."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import mean

import torch
from torch import Tensor

from service.networks.cascade import Carried, pyramid
from service.networks.msnet import MSNet


@dataclass(frozen=True, slots=True)
class Handover:
    """Of the sum after one block, H(x_H) + up(x_L): means over channels and images.

    Attributes:
        share: the variance of what is given, of both summands'; 0.5 is half.
        correlation: of the two summands, over places and images; below 0 the last stage takes back what it is given.
    """

    share: float
    correlation: float


def handover(network: MSNet, batches: Iterable[Tensor]) -> list[Handover]:
    """Of every block of ``network`` (evaluation mode) where maps are summed, on normalised images (B, 3, R, R)."""
    with torch.inference_mode():
        passes = [_of(network, images) for images in batches]
    return [
        Handover(mean(p.share for p in block), mean(p.correlation for p in block))
        for block in zip(*passes, strict=True)
    ]


def _of(network: MSNet, images: Tensor) -> list[Handover]:
    found = []
    *earlier, x = pyramid(images, network.scales)
    carried: Carried = ()
    for stage, pixels in enumerate(earlier):
        _, carried = network.run(stage, pixels, carried)
    taken = network.taken(network.depth - 1, carried)
    for block, feature in zip(network.backbone(network.depth - 1).blocks, taken, strict=True):
        if feature.dim() == 2:  # only means are handed over
            break
        own, given = network.summands(block, x, feature)
        found.append(_compare(own, given))
        x = network.add(block, own, given)
    return found


def _compare(own: Tensor, given: Tensor) -> Handover:
    """Of maps (B, C, H, W)."""
    own, given = (maps.float() - maps.float().mean((0, 2, 3), keepdim=True) for maps in (own, given))
    spread, low, both = (product.mean().item() for product in (own.square(), given.square(), own * given))
    total, norm = spread + low, (spread * low) ** 0.5
    return Handover(low / total if total else 0.0, both / norm if norm else 0.0)
