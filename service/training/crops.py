"""Input of a training step: a random crop of every photograph, in the order of the epoch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler
from torchvision.transforms import v2

from service.training.data import Reader


class RandomCrop:
    """A random crop of a photograph's ``pixels``, resized to ``resolution``, flipped half of the time.

    ``augment`` adds one random operation of random strength: rotation, shear, shift, colour or sharpness (Müller and
    Hutter, "TrivialAugment", 2021).

    The crop depends only on (seed, epoch, photograph), not on the process: a resumed run sees the same crops as an
    uninterrupted one.
    """

    def __init__(self, pixels: Reader, resolution: int, min_scale: float, augment: bool, seed: int, epoch: int) -> None:
        self.pixels = pixels
        self.seed = seed
        self.epoch = epoch
        steps = [v2.RandomResizedCrop(resolution, scale=(min_scale, 1.0)), v2.RandomHorizontalFlip()]
        if augment:
            steps.append(v2.TrivialAugmentWide())
        self.transform = v2.Compose(steps)

    def __call__(self, path: Path, index: int) -> Tensor:
        pixels = self.pixels(path, index)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(hash((self.seed, self.epoch, index)) & 0x7FFF_FFFF_FFFF_FFFF)
            crop: Tensor = self.transform(pixels)
        return crop


class EpochSampler(Sampler[int]):
    """This process's share of one epoch's shuffled order, complete steps only; the order does not depend on
    ``world``."""

    def __init__(self, size: int, seed: int, epoch: int, rank: int, world: int) -> None:
        order = np.random.default_rng((seed, epoch)).permutation(size)
        self.indices = order[rank::world][: size // world].tolist()

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)
