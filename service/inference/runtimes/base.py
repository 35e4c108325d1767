"""The interface of every runtime, and the computation of a stage's input from pixels."""

from __future__ import annotations

from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from service.images.transforms import Preprocessing
from service.model_spec import ModelSpec
from service.networks.cascade import Carried


class Runtime(Protocol):
    """Runs a network's stages. Synchronous; threads may share a runtime. One test suite checks every runtime."""

    name: str

    def run(self, stage: int, images: Tensor, carried: Carried) -> tuple[Tensor, Carried]:
        """See ``Predictor.run``."""
        ...


def channels(spec: ModelSpec, stage: int) -> Preprocessing:
    """The preprocessing with the mean and standard deviation of ``stage``."""
    own, shared = spec.stages[stage], spec.preprocessing
    return Preprocessing(shared.resize, shared.crop, own.mean or shared.mean, own.std or shared.std)


def normalise(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Normalise each channel: (B, 3, R, R) RGB from 0 to 255 -> float32, channels last.

    Float32 images that are already channels last are overwritten; uint8 images are not.
    """
    shift, scale = _shift_and_scale(preprocessing, images.device)
    pixels = images.to(torch.float32, memory_format=torch.channels_last)
    return pixels.sub_(shift).mul_(scale)


@lru_cache(maxsize=16)
def _shift_and_scale(preprocessing: Preprocessing, device: torch.device) -> tuple[Tensor, Tensor]:
    """Created once, because no data may be copied from the host while a CUDA graph is recorded."""
    with torch.inference_mode(False):
        mean, std = (torch.tensor(values, device=device) for values in (preprocessing.mean, preprocessing.std))
        return (255 * mean).view(1, 3, 1, 1), (1 / (255 * std)).view(1, 3, 1, 1)
