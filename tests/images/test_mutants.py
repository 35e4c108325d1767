"""The damaged files that `make faults` sends: a few of each kind, and those that once broke something."""

from __future__ import annotations

from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.attacks.mutations import FORMATS, mutants, pictures
from service.errors import ImageTooLarge, InvalidImage, UnsupportedImage
from service.images.decode import decode
from service.images.transforms import Preprocessing

SMALL = Preprocessing(resize=36, crop=32)


def outcome(data: bytes) -> str:
    try:
        shape = decode(data, SMALL).shape
    except (InvalidImage, UnsupportedImage, ImageTooLarge) as error:
        return str(error.status)
    assert shape == (3, 32, 32)
    return "decoded"


def test_pictures_are_of_every_format_and_whole() -> None:
    whole = pictures(0)
    assert len(whole) == 2 * len(FORMATS)
    assert {outcome(data) for data in whole.values()} == {"decoded"}


def test_files_are_the_same_for_the_same_seed() -> None:
    assert list(mutants(3, 50)) == list(mutants(3, 50))
    assert list(mutants(3, 50)) != list(mutants(4, 50))


def test_damage_gives_an_image_or_an_error_of_the_sender() -> None:
    assert {outcome(data) for _, data in mutants(0, 600)} >= {"decoded", "400", "415"}


@given(seed=st.integers(0, 1 << 32), at=st.integers(0, 27))
@settings(max_examples=100, deadline=None)
def test_so_does_damage_of_any_seed(seed: int, at: int) -> None:
    (_, data) = next(islice(mutants(seed, 28), at, None))
    outcome(data)


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_survives_being_cut(kind: str) -> None:
    data = pictures(1)[f"{kind} 40x30"]
    for end in range(0, len(data), max(1, len(data) // 40)):
        outcome(data[:end])
