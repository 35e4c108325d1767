"""Folders of photographs: found, split, labelled, cropped, ordered; whatever is wrong with them is named."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from service.errors import DataError, InvalidOption
from service.images.decode import decode
from service.images.transforms import Preprocessing
from service.training.data import (
    CentreCrop,
    EpochSampler,
    Photographs,
    RandomCrop,
    find,
    halve,
    hold_out,
    labels,
    loader,
)
from service.training.pixels import Pixels


def _photographs(*counts: int) -> Photographs:
    """So many made-up files for each class."""
    targets = tuple(target for target, count in enumerate(counts) for _ in range(count))
    return Photographs(
        tuple(f"class{target}" for target in range(len(counts))),
        tuple(Path(f"{index}.jpg") for index in range(len(targets))),
        targets,
    )


def test_finds_every_photograph_with_its_class(shapes: Path) -> None:
    found = find(shapes, "train")
    assert found.folders == ("circle", "square", "triangle")
    assert Counter(found.targets) == {0: 24, 1: 24, 2: 24}
    assert all(path.parent.name == found.folders[t] for path, t in zip(found.paths, found.targets, strict=True))


def test_class_folders_themselves_do_for_training(shapes: Path) -> None:
    assert find(shapes / "train", "train") == find(shapes, "train")


@pytest.mark.parametrize(
    ("root", "split", "message"),
    [
        ("nowhere", "train", "nowhere', which is no folder"),
        (".", "test", "has no folder test/"),
        ("train", "val", "has no folder val/"),
        ("train/circle", "train", "Couldn't find any class folder"),
    ],
)
def test_missing_folder_is_named(shapes: Path, root: str, split: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        find(shapes / root, split)
    assert caught.value.field == "data"


@pytest.mark.parametrize("split", ["", ".", "..", "train/", "./train", "../shapes/train"])
def test_split_that_leads_elsewhere_is_refused(shapes: Path, split: str) -> None:
    with pytest.raises(InvalidOption, match="it must be the name of a folder in"):
        find(shapes, split)


def test_val_without_train_is_no_training_data(shapes: Path, tmp_path: Path) -> None:
    shutil.copytree(shapes / "val", tmp_path / "val")
    with pytest.raises(DataError, match="has no folder train/"):
        find(tmp_path, "train")


def test_empty_class_is_named(shapes: Path, tmp_path: Path) -> None:
    shutil.copytree(shapes / "val", tmp_path / "train")
    (tmp_path / "train" / "pentagon").mkdir()
    (tmp_path / "train" / "pentagon" / "notes.txt").write_text("none yet")
    with pytest.raises(DataError, match="pentagon"):
        find(tmp_path, "train")


def test_one_class_is_too_few(shapes: Path, tmp_path: Path) -> None:
    shutil.copytree(shapes / "val" / "circle", tmp_path / "train" / "circle")
    with pytest.raises(DataError, match="holds 1 class; it takes at least 2"):
        find(tmp_path, "train")


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
    first, second = halve(photographs)
    assert not set(first.paths) & set(second.paths)
    assert len(first) + len(second) == len(photographs)
    assert 0 <= len(first) - len(second) <= 1
    per_class = Counter(first.targets)
    per_class.subtract(Counter(second.targets))
    assert set(per_class.values()) <= {-1, 0, 1}
    assert halve(photographs) == (first, second)


def test_labels_come_from_a_json_file(tmp_path: Path) -> None:
    names = tmp_path / "names.json"
    names.write_text(json.dumps({"n02": "a bee", "n01": "an ant", "n03": "unused"}))
    assert labels(("n01", "n02"), names) == ("an ant", "a bee")
    assert labels(("n01", "n02"), None) == ("n01", "n02")


@pytest.mark.parametrize(
    ("text", "message"),
    [('{"n01": "an ant"}', "lack folder 'n02'"), ("{", "cannot be read"), ('["an ant"]', "cannot be read")],
)
def test_wrong_class_names_are_an_error(tmp_path: Path, text: str, message: str) -> None:
    names = tmp_path / "names.json"
    names.write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        labels(("n01", "n02"), names)
    assert caught.value.field == "class_names"


def test_missing_class_names_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"names\.json cannot be read"):
        labels(("n01",), tmp_path / "names.json")


PHOTOGRAPH = "train/circle/00.jpg"


def _pixels(photographs: Photographs, budget: float = 0, shorter_side: int = 256) -> Pixels:
    return Pixels(photographs, shorter_side, budget, torch.device("cpu"))


def _crop(path: Path, seed: int = 0, epoch: int = 0, index: int = 0, *, augment: bool = False) -> Tensor:
    return RandomCrop(_pixels(_photographs()), 64, 0.25, augment, seed, epoch)(path, index)


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


def test_test_crop_is_the_servers_decoding(shapes: Path) -> None:
    path, preprocessing = shapes / "val" / "square" / "00.jpg", Preprocessing.at(64)
    assert torch.equal(CentreCrop(preprocessing)(path, 0), decode(path.read_bytes(), preprocessing))


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


@pytest.mark.parametrize("budget", [0, 1e9])
def test_cropping_in_processes_gives_the_same(shapes: Path, budget: float) -> None:
    photographs = find(shapes, "val")
    crop = RandomCrop(_pixels(photographs, budget), 64, 0.25, True, seed=0, epoch=0)
    here, there = (torch.cat([b.images for b in loader(photographs, crop, 6, workers)]) for workers in (0, 1))
    assert torch.equal(here, there)
