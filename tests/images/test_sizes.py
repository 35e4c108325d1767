"""The sizes of one image: means of whole squares of pixels, rounded without a bias; other sizes are resized."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from service.images.sizes import in_sizes


def crops(count: int, side: int) -> Tensor:
    generator = torch.Generator().manual_seed(side)
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("factor", [2, 3, 4, 8, 20])
def test_size_that_divides_is_the_mean_rounded_to_the_nearest_and_halves_to_the_even_value(factor: int) -> None:
    images = crops(2, 12 * factor)
    (smaller,) = in_sizes(images, [12])
    expected = avg_pool2d(images.double(), factor).round()  # which rounds halves to even, too
    assert torch.equal(smaller, expected.to(torch.uint8))


@pytest.mark.parametrize("factor", [2, 4])
def test_darkest_and_brightest_stay_as_they_are(factor: int) -> None:
    for value in (0, 255):
        (smaller,) = in_sizes(torch.full((3, 8 * factor, 8 * factor), value, dtype=torch.uint8), [8])
        assert bool((smaller == value).all())


def test_halving_has_no_bias() -> None:
    images = crops(8, 128)
    (smaller,) = in_sizes(images, [64])
    assert abs((smaller.double() - avg_pool2d(images.double(), 2)).mean().item()) < 0.005  # rounded up it is 0.125


def test_own_size_is_the_crop_itself_and_others_are_resized_with_channels_last() -> None:
    crop = crops(1, 224)[0]
    own, other, half = in_sizes(crop, [224, 128, 112])
    assert own is crop
    assert (other.shape, half.shape) == ((3, 128, 128), (3, 112, 112))
    assert all(each.permute(1, 2, 0).is_contiguous() for each in (other, half))
