"""Folders of photographs: found, split, labelled, cropped, ordered; whatever is wrong with them is named."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest
import torch

from service.images.decode import decode
from service.images.transforms import Preprocessing
from service.training.data import CentreCrop, Photographs, find, hold_out, loader, split_in_halves


def _photographs(*counts: int) -> Photographs:
    """So many made-up files for each class."""
    targets = tuple(target for target, count in enumerate(counts) for _ in range(count))
    return Photographs(
        tuple(f"class{target}" for target in range(len(counts))),
        tuple(Path(f"{index}.jpg") for index in range(len(targets))),
        targets,
    )


def test_held_out_share_is_taken_from_every_class() -> None:
    rest, held = hold_out(_photographs(40, 20, 10), 0.1, seed=0)
    assert Counter(held.targets) == {0: 4, 1: 2, 2: 1}
    assert Counter(rest.targets) == {0: 36, 1: 18, 2: 9}


def test_held_out_and_rest_share_nothing_and_miss_nothing() -> None:
    photographs = _photographs(13, 17, 5)
    rest, held = hold_out(photographs, 0.3, seed=3)
    assert not set(rest.paths) & set(held.paths)
    assert set(rest.paths) | set(held.paths) == set(photographs.paths)


def test_held_out_split_depends_on_the_seed_alone() -> None:
    photographs = _photographs(30, 30)
    first = hold_out(photographs, 0.2, seed=1)
    torch.manual_seed(99)
    assert hold_out(photographs, 0.2, seed=1) == first
    assert hold_out(photographs, 0.2, seed=2) != first


def test_nothing_may_be_held_out() -> None:
    rest, held = hold_out(_photographs(5, 5), 0, seed=0)
    assert (len(rest), len(held)) == (10, 0)


@pytest.mark.parametrize("counts", [(10, 10), (7, 5, 3), (1,) * 20, (3,) * 7])
def test_halves_are_even_over_all_and_in_every_class(counts: tuple[int, ...]) -> None:
    photographs = _photographs(*counts)
    first, second = split_in_halves(photographs)
    assert not set(first.paths) & set(second.paths)
    assert len(first) + len(second) == len(photographs)
    assert 0 <= len(first) - len(second) <= 1
    per_class = Counter(first.targets)
    per_class.subtract(Counter(second.targets))
    assert set(per_class.values()) <= {-1, 0, 1}
    assert split_in_halves(photographs) == (first, second)


def test_test_crop_is_the_servers_decoding(shapes: Path) -> None:
    path, preprocessing = shapes / "val" / "square" / "00.jpg", Preprocessing.at(64)
    assert torch.equal(CentreCrop(preprocessing)(path, 0), decode(path.read_bytes(), preprocessing))


def test_unreadable_files_are_named_beside_the_rest_of_their_batch(spoilt: Path) -> None:
    photographs = find(spoilt, "train")
    batches = list(loader(photographs, CentreCrop(Preprocessing.at(64)), batch_size=8, workers=0))
    unreadable = {Path(path).name for batch in batches for path in batch.unreadable}
    assert unreadable == {"corrupt.jpg", "empty.jpg", "text.jpg"}
    assert sum(len(batch.images) for batch in batches) == len(photographs) - 3
    assert all(len(batch.images) == len(batch.targets) for batch in batches)


def test_a_batch_of_unreadable_files_is_empty(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    photographs = Photographs(("a", "b"), (tmp_path / "empty.jpg",) * 2, (0, 1))
    (batch,) = loader(photographs, CentreCrop(Preprocessing.at(64)), batch_size=2, workers=0)
    assert (len(batch.images), len(batch.targets), len(batch.unreadable)) == (0, 0, 2)


def test_full_batches_have_another_photograph_for_each_that_cannot_be_read(spoilt: Path) -> None:
    photographs = find(spoilt, "train")
    crop = CentreCrop(Preprocessing.at(64))
    first, again = (list(loader(photographs, crop, batch_size=8, workers=0, full=True)) for _ in range(2))
    assert [len(batch.images) for batch in first] == [8] * (len(photographs) // 8)
    assert {Path(path).name for batch in first for path in batch.unreadable} == {"corrupt.jpg", "empty.jpg", "text.jpg"}
    assert all(torch.equal(one.images, other.images) for one, other in zip(first, again, strict=True))


def test_unreadable_file_of_any_name_is_named_in_text(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jpg"))
    path.touch()
    (batch,) = loader(Photographs(("a",), (path,), (0,)), CentreCrop(Preprocessing.at(64)), batch_size=2, workers=0)
    assert batch.unreadable == (f"{tmp_path}/caf\N{REPLACEMENT CHARACTER}.jpg",)
