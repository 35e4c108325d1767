from __future__ import annotations

import io

import pytest
import torch
from PIL import Image

from loadtest import bodies
from loadtest.padding import HEAD, MOST, padded, small
from service.images.decode import decode
from service.images.transforms import Preprocessing

PREPROCESSING = Preprocessing.at(192)


@pytest.fixture(scope="module")
def jpeg() -> bytes:
    return small(bodies.choose(None, 1)[0].read_bytes(), 10_000)


@pytest.mark.parametrize("size", [10_000, 100_000, 1_000_000])
def test_a_padded_jpeg_has_the_size_and_decodes_to_the_same_pixels(jpeg: bytes, size: int) -> None:
    made = padded(jpeg, size)
    assert len(made) == size
    assert torch.equal(decode(made, PREPROCESSING), decode(jpeg, PREPROCESSING))


@pytest.mark.parametrize("more", [0, HEAD, MOST, MOST + 1, MOST + HEAD - 1, MOST + HEAD, 2 * MOST, 2 * MOST + 1])
def test_every_comment_has_room_for_its_head(jpeg: bytes, more: int) -> None:
    made = padded(jpeg, len(jpeg) + more)
    assert len(made) == len(jpeg) + more
    with Image.open(io.BytesIO(made)) as image, Image.open(io.BytesIO(jpeg)) as plain:
        assert image.tobytes() == plain.tobytes()


@pytest.mark.parametrize("more", [-1, HEAD - 1])
def test_what_leaves_no_room_for_a_comment_is_told(jpeg: bytes, more: int) -> None:
    with pytest.raises(ValueError, match=f"cannot be padded to {len(jpeg) + more}"):
        padded(jpeg, len(jpeg) + more)


def test_a_photograph_is_made_small_enough_to_be_padded(jpeg: bytes) -> None:
    assert len(jpeg) <= 10_000 - HEAD
    with Image.open(io.BytesIO(jpeg)) as image:
        assert min(image.size) == 224
    with pytest.raises(ValueError, match="more than 500 bytes"):
        small(jpeg, 500)
