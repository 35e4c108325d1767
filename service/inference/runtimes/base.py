"""What every runtime does, and how a stage's input is made from pixels."""

from __future__ import annotations

from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from service.images.transforms import Preprocessing
from service.model_spec import ModelSpec
from service.networks.cascade import Carried


class Runtime(Protocol):
    """Runs a network's stages. Synchronous; threads may share one. One contract test suite runs over every runtime."""

    name: str

    def run(self, stage: int, images: Tensor, carried: Carried) -> tuple[Tensor, Carried]:
        """See ``Predictor.run``."""
        ...


def channels(spec: ModelSpec, stage: int) -> Preprocessing:
    """The preprocessing with the mean and deviation that ``stage`` is normalised by."""
    own, shared = spec.stages[stage], spec.preprocessing
    return Preprocessing(shared.resize, shared.crop, own.mean or shared.mean, own.std or shared.std)


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
