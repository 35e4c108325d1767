"""What a training step sees is the same for the same seed, epoch and photograph, in any process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from service.training.crops import EpochSampler, RandomCrop
from service.training.data import Photographs, find, loader
from service.training.pixels import DecodedPhotographs

PHOTOGRAPH = "train/circle/00.jpg"


def _pixels(photographs: Photographs, budget: float = 0, shorter_side: int = 256) -> DecodedPhotographs:
    return DecodedPhotographs(photographs, shorter_side, budget, torch.device("cpu"))


def _crop(path: Path, seed: int = 0, epoch: int = 0, index: int = 0, *, augment: bool = False) -> Tensor:
    return RandomCrop(_pixels(Photographs((), (), ())), 64, 0.25, augment, seed, epoch)(path, index)


def test_random_crop_is_the_same_for_the_same_seed_epoch_and_photograph(shapes: Path) -> None:
    first = _crop(shapes / PHOTOGRAPH, 1, 2, 3)
    torch.rand(7)
    assert first.shape == (3, 64, 64)
    assert first.dtype == torch.uint8
    assert torch.equal(_crop(shapes / PHOTOGRAPH, 1, 2, 3), first)


@pytest.mark.parametrize("changed", [{"seed": 5}, {"epoch": 5}, {"index": 5}])
def test_random_crop_differs_with_seed_epoch_and_photograph(shapes: Path, changed: dict[str, Any]) -> None:
    assert not torch.equal(_crop(shapes / PHOTOGRAPH, **changed), _crop(shapes / PHOTOGRAPH))


def test_augmented_crops_are_other_changes_of_the_same_crops(shapes: Path) -> None:
    plain = [_crop(shapes / PHOTOGRAPH, index=index) for index in range(20)]
    changed = [_crop(shapes / PHOTOGRAPH, index=index, augment=True) for index in range(20)]
    assert {(crop.shape, crop.dtype) for crop in changed} == {((3, 64, 64), torch.uint8)}
    same = [torch.equal(one, other) for one, other in zip(plain, changed, strict=True)]
    assert 0 < sum(same) < len(same) / 2  # to change nothing is one of the changes
    differences = {(one.int() - other.int()).abs().sum().item() for one, other in zip(plain, changed, strict=True)}
    assert len(differences) > len(same) / 2
    assert torch.equal(_crop(shapes / PHOTOGRAPH, index=7, augment=True), changed[7])


def test_random_crop_leaves_the_global_generator_alone(shapes: Path) -> None:
    before = torch.get_rng_state()
    _crop(shapes / PHOTOGRAPH)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_every_world_sees_the_same_photographs_step_by_step(world: int) -> None:
    alone = list(EpochSampler(97, seed=1, epoch=2, rank=0, world=1))
    shares = [list(EpochSampler(97, seed=1, epoch=2, rank=rank, world=world)) for rank in range(world)]
    together = [index for step in zip(*shares, strict=True) for index in step]
    assert together == alone[: len(together)]
    assert len(together) == 97 // world * world


def test_order_changes_with_the_epoch_and_the_seed() -> None:
    orders = [list(EpochSampler(50, seed, epoch, 0, 1)) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3


@pytest.mark.parametrize("budget", [0, 1e9])
def test_cropping_in_processes_gives_the_same(shapes: Path, budget: float) -> None:
    photographs = find(shapes, "val")
    crop = RandomCrop(_pixels(photographs, budget), 64, 0.25, True, seed=0, epoch=0)
    here, there = (torch.cat([b.images for b in loader(photographs, crop, 6, workers)]) for workers in (0, 1))
    assert torch.equal(here, there)
