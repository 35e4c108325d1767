"""The sizes of one image that the stages of a cascade compute on, made once, when it is decoded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from service.images.decode import resize, stack
from service.images.pixels import Pixels


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
    smaller = resize(pixels, side) if whole % side else _means(pixels, whole // side)
    return torch.from_numpy(np.ascontiguousarray(smaller).transpose(2, 0, 1))


def _means(pixels: Pixels, factor: int) -> Pixels:
    """Over ``factor`` x ``factor`` pixels, halves rounded to the even value: (S, S, 3) -> (S / factor, S / factor, 3).

    Rounded up, as Pillow's ``reduce`` does, halved photographs are an eighth of a value too bright. All pixels are
    added to their neighbours, and then one in ``factor`` is kept: so NumPy adds long runs of memory.
    """
    side, count = len(pixels) // factor, factor * factor
    lines = pixels.reshape(side, factor, -1)
    rows = np.add(lines[:, 0], lines[:, 1], dtype=np.uint16 if factor <= 16 else np.uint32)
    for offset in range(2, factor):
        rows += lines[:, offset]
    flat = rows.reshape(-1)
    width = flat.size - 3 * (factor - 1)
    sums = np.empty_like(flat)
    np.add(flat[:width], flat[3 : 3 + width], out=sums[:width])
    for offset in range(2, factor):
        sums[:width] += flat[3 * offset : 3 * offset + width]
    means: Pixels = _rounded(_every(sums, factor), count).astype(np.uint8)
    return means.reshape(side, side, 3)


def _every(values: Any, factor: int) -> Any:
    """The first of each ``factor`` pixels of three values: (3 * factor * n,) -> (3 * n,).

    Four values are copied at once, of which the next copy overwrites the last: a third of the time of three.
    """
    n, value = values.size // (3 * factor), values.itemsize
    kept = np.empty(3 * n + 1, values.dtype)
    four = np.dtype((np.void, 4 * value)) if value > 2 else np.dtype(np.uint64)
    source = np.ndarray((n,), four, values, strides=(3 * factor * value,))
    np.ndarray((n,), four, kept, strides=(3 * value,))[...] = source
    return kept[:-1]


def _rounded(sums: Any, count: int) -> Any:
    """``sums / count``, whole numbers; ``sums`` is overwritten."""
    if count & (count - 1):
        return np.rint(sums / count)
    shift = count.bit_length() - 1
    is_odd = sums >> shift
    is_odd &= 1
    sums += is_odd
    sums += count // 2 - 1
    sums >>= shift
    return sums
