"""The sizes of one image that the stages of a cascade compute on, made once, when it is decoded."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from service.images.decode import resize, stack


def in_sizes(crops: Tensor, resolutions: Sequence[int]) -> tuple[Tensor, ...]:
    """Crops as ``decode`` gives them, uint8 (3, R, R) or (B, 3, R, R), in every size: uint8 (..., 3, r, r).

    Channels last in memory. A size that divides R is the mean of whole squares of pixels, rounded, as multi-scale
    networks are trained; any other is resized, antialiased.
    """
    if crops.dim() == 4:
        return tuple(stack(images) for images in zip(*(in_sizes(crop, resolutions) for crop in crops), strict=True))
    return tuple(_in_size(crops, side) for side in resolutions)


def _in_size(crop: Tensor, side: int) -> Tensor:
    whole = crop.shape[-1]
    if side == whole:
        return crop
    pixels = np.ascontiguousarray(crop.permute(1, 2, 0).numpy())
    if whole % side:
        smaller = np.ascontiguousarray(resize(pixels, side))
    else:
        smaller = np.array(Image.fromarray(pixels).reduce(whole // side))
    return torch.from_numpy(smaller.transpose(2, 0, 1))
