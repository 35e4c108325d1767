"""The part of a photograph that is resized for a crop."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.images.transforms import ROUNDING, Preprocessing

PREPROCESSING = Preprocessing(resize=225, crop=192)


class TestSourceSquare:
    @given(width=st.integers(8, 70_000), height=st.integers(8, 70_000), eighths=st.sampled_from([1, 2, 4, 8]))
    def test_is_in_the_middle_of_the_photograph(self, width: int, height: int, eighths: int) -> None:
        width_shown, height_shown = width * eighths / 8, height * eighths / 8  # a JPEG's size at one of its scales
        (left, top, right, bottom), _ = PREPROCESSING.source_square(width_shown, height_shown)
        assert right - left == bottom - top > 0
        assert 0 <= left < right <= math.ceil(width_shown)
        assert 0 <= top < bottom <= math.ceil(height_shown)
        assert abs(left + right - width_shown) <= 1
        assert abs(top + bottom - height_shown) <= 1

    @given(shorter=st.integers(1, 70_000))
    def test_is_resized_at_the_scale_of_the_photograph(self, shorter: int) -> None:
        (left, _, right, _), side = PREPROCESSING.source_square(shorter, 2 * shorter)
        assert 192 <= side <= 225
        assert abs((right - left) * 225 / shorter - side) <= ROUNDING * 1.001

    @pytest.mark.parametrize(
        ("size", "box", "side"),
        [
            ((224, 224), (14, 14, 211, 211), 198),
            ((225, 300), (16, 54, 208, 246), 192),
            ((500, 375), (90, 28, 410, 348), 192),
            ((1, 1), (0, 0, 1, 1), 225),
        ],
    )
    def test_is_as_small_as_whole_pixels_allow(
        self, size: tuple[int, int], box: tuple[int, int, int, int], side: int
    ) -> None:
        assert PREPROCESSING.source_square(*size) == (box, side)
