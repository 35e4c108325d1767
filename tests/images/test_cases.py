"""Files that users have sent, and the right answers; ``LOWFIRST_TEST_CASES`` names their folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from service.errors import ImageTooLarge, InvalidImage
from service.images.decode import decode
from tests.images.encoding import PREPROCESSING

FOLDER = Path(os.environ.get("LOWFIRST_TEST_CASES", "no-cases"))

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="LOWFIRST_TEST_CASES names no folder of cases")


def case(name: str) -> torch.Tensor:
    return decode((FOLDER / name).read_bytes(), PREPROCESSING)


def test_16_bit_grey_with_a_transparent_value_is_its_8_bit_twin() -> None:
    assert torch.equal(case("png_gray16_trns.png"), case("png_gray_trns.png"))


@pytest.mark.parametrize("name", ["png_ztxt_1600k.png", "png_iccp_1500k.png", "png_iccp_x1000.png", "jpg_noeoi.jpg"])
def test_complete_pictures_are_read_whatever_metadata_they_have(name: str) -> None:
    difference = (case(name).int() - case("church.jpg").int()).abs()
    assert difference.float().mean() < 1


@pytest.mark.parametrize("name", ["jpg_half_with_end.jpg", "jpg_height_doubled.jpg"])
def test_pictures_without_all_of_their_rows_are_cut_short(name: str) -> None:
    with pytest.raises(InvalidImage, match="cut short"):
        case(name)


def test_a_flood_of_scans_is_too_large() -> None:
    with pytest.raises(ImageTooLarge, match="500 scans"):
        case("jpg_scans_4000x4000_10000.jpg")
