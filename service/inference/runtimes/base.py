"""What every runtime does, and how the network's input is made from pixels."""

from __future__ import annotations

from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from service.images.transforms import Preprocessing
from service.networks.msnet import LowState


class Runtime(Protocol):
    """Runs a network's passes. Synchronous; threads may share one. One contract test suite runs over every runtime.

    ``low`` and ``high`` are of a multi-scale network, ``single`` of a single-scale one. ``wide`` uses every core for
    the one batch, for a CPU that has nothing else to do; elsewhere it means nothing.
    """

    name: str

    def low(self, images: Tensor, wide: bool = False) -> LowState:
        """uint8 (B, 3, R, R) -> low logits (B, K) and the features that ``high`` reuses, on the runtime's device.

        They are valid until the same thread's next pass: copy what is kept.
        """
        ...

    def high(self, images: Tensor, low: LowState, wide: bool = False) -> Tensor:
        """The same images and their low state -> high logits (B, K)."""
        ...

    def single(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, R, R) -> logits (B, K)."""
        ...


def normalise(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Zero mean and unit variance by channel: (B, 3, R, R) RGB of 0 to 255 -> float32, channels last.

    Float32 images that lie channels last already are overwritten; uint8 ones are not.
    """
    shift, scale = _shift_and_scale(preprocessing, images.device)
    pixels = images.to(torch.float32, memory_format=torch.channels_last)
    return pixels.sub_(shift).mul_(scale)


@lru_cache(maxsize=16)
def _shift_and_scale(preprocessing: Preprocessing, device: torch.device) -> tuple[Tensor, Tensor]:
    """Made once: a CUDA graph may not be fed from the host while it is recorded."""
    with torch.inference_mode(False):
        mean, std = (torch.tensor(values, device=device) for values in (preprocessing.mean, preprocessing.std))
        return (255 * mean).view(1, 3, 1, 1), (1 / (255 * std)).view(1, 3, 1, 1)
