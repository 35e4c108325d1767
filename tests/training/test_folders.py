"""Folders of photographs as they come: archives, notebooks, links and foreign files; what is read and what is said."""

from __future__ import annotations

import os
import shutil
import socket
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from service.errors import DataError, InvalidOption
from service.training.data import find, find_unlabelled

Lay = Callable[..., Path]


@pytest.fixture
def lay(shapes: Path, tmp_path: Path) -> Lay:
    """``lay(*names)``: a data set with a photograph, each another, at each of these places."""
    photographs = sorted((shapes / "train").rglob("*.jpg"))

    def make(*names: str) -> Path:
        root = tmp_path / "data"
        root.mkdir(exist_ok=True)
        for name in names:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(photographs.pop(), root / name)
        return root

    return make


def _found(root: Path, split: str = "train") -> dict[str, list[str]]:
    """The names of the photographs of each class."""
    photographs = find(root, split)
    found: dict[str, list[str]] = {folder: [] for folder in photographs.folders}
    for path, target in zip(photographs.paths, photographs.targets, strict=True):
        found[photographs.folders[target]].append(path.name)
    return found


def test_finds_every_photograph_with_its_class(shapes: Path) -> None:
    found = find(shapes, "train")
    assert found.folders == ("circle", "square", "triangle")
    assert Counter(found.targets) == {0: 24, 1: 24, 2: 24}
    assert all(path.parent.name == found.folders[t] for path, t in zip(found.paths, found.targets, strict=True))
    assert found.skipped == ()


def test_class_folders_themselves_do_for_training(shapes: Path) -> None:
    assert find(shapes / "train", "train") == find(shapes, "train")


@pytest.mark.parametrize(
    ("root", "split", "message"),
    [
        ("nowhere", "train", "nowhere', which is not a folder"),
        (".", "test", "has no folder test/.* it has train/, val/"),
        ("train", "val", "has no folder val/"),
        ("train/circle", "train", "circle has no class folders"),
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


@pytest.mark.parametrize(("train", "val"), [("Train", "Val"), ("TRAIN", "VAL"), ("train", "Val")])
def test_splits_are_known_in_any_case(lay: Lay, train: str, val: str) -> None:
    root = lay(f"{train}/a/1.jpg", f"{train}/b/2.jpg", f"{val}/a/3.jpg")
    assert _found(root) == {"a": ["1.jpg"], "b": ["2.jpg"]}
    assert _found(root, "val") == {"a": ["3.jpg"]}


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["Train/a/1.jpg", "TRAIN/a/2.jpg"], "has TRAIN/, Train/: which of them is train/ is unclear"),
        (["training/a/1.jpg", "validation/a/2.jpg"], "has no folder train/.* it has training/, validation/: rename"),
        (["flowers/train/a/1.jpg", "flowers/val/a/2.jpg"], "is its folder flowers/; pass --data .*/data/flowers"),
        (["x/train/a/1.jpg", "__MACOSX/x/train/a/2.jpg"], "is its folder x/; pass --data .*/data/x"),
        (["x/x/y/1.jpg", "x/test/a/2.jpg", "x/Train/a/3.jpg"], "is its folder x/; pass --data .*/data/x"),
        (["train/1.jpg", "car/2.jpg", "bus/3.jpg"], "train has no class folders"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_data_set_laid_out_otherwise_is_refused_in_one_sentence(lay: Lay, names: list[str], says: str) -> None:
    with pytest.raises(DataError, match=says) as caught:
        find(lay(*names), "train")
    assert "\n" not in caught.value.message


def test_classes_named_as_splits_are_still_classes_beside_others(lay: Lay) -> None:
    assert list(_found(lay("valid/1.jpg", "invalid/2.jpg", "test/3.jpg"))) == ["invalid", "test", "valid"]


@pytest.mark.parametrize("name", [".ipynb_checkpoints", "__MACOSX", ".git", "@eaDir", "lost+found"])
def test_hidden_folders_are_neither_classes_nor_photographs(lay: Lay, name: str) -> None:
    root = lay("train/a/1.jpg", "train/b/2.jpg", f"train/{name}/a/3.jpg", f"train/a/{name}/4.jpg")
    assert _found(root) == {"a": ["1.jpg"], "b": ["2.jpg"]}
    assert dict(find(root, "train").skipped) == {"hidden": 2}


@pytest.mark.parametrize("name", ["._1.jpg", ".DS_Store", "Thumbs.db", "desktop.ini"])
def test_hidden_files_are_no_photographs(lay: Lay, name: str) -> None:
    root = lay("train/a/1.jpg", f"train/a/{name}", "train/b/2.jpg")
    assert _found(root) == {"a": ["1.jpg"], "b": ["2.jpg"]}
    assert dict(find(root, "train").skipped) == {"hidden": 1}


def test_what_is_not_read_is_counted_by_kind(lay: Lay) -> None:
    others = ["a/2.heic", "a/3.HEIC", "b/4.avif", "b/5.tif", "b/deep/6.TIFF", "b/7", "8.jpg", "notes.txt"]
    root = lay("train/a/1.jpg", "train/b/1.jpg", *(f"train/{name}" for name in others))
    assert _found(root) == {"a": ["1.jpg"], "b": ["1.jpg"]}
    assert dict(find(root, "train").skipped) == {
        ".heic": 2, ".avif": 1, ".tif": 1, ".tiff": 1, "without extension": 1, ".txt": 1,
        "photograph outside of the class folders": 1,
    }  # fmt: skip


@pytest.mark.parametrize("extension", ["jfif", "JPE", "jpg", "JPEG", "png", "webp", "gif", "bmp"])
def test_every_extension_of_a_format_that_is_served_is_read(lay: Lay, extension: str) -> None:
    assert _found(lay(f"train/a/1.{extension}", "train/b/1.jpg"))["a"] == [f"1.{extension}"]


def _link(root: Path, name: str, target: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).symlink_to(target)


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("train/a/up", ".."),
        ("train/a/all", "../.."),
        ("train/a/self", "."),
        ("train/a/loop", "loop"),
        ("train/a/beside", "../b"),
        ("train/c", "a"),
        ("train/a/root", "/"),
    ],
)
def test_links_to_what_is_read_anyway_are_not_followed(lay: Lay, name: str, target: str) -> None:
    root = lay("train/a/1.jpg", "train/b/2.jpg", "val/a/3.jpg")
    _link(root, name, target)
    assert _found(root) == {"a": ["1.jpg"], "b": ["2.jpg"]}
    assert sum(count for _, count in find(root, "train").skipped) == 1


def test_links_to_photographs_elsewhere_are_followed_once(lay: Lay, tmp_path: Path) -> None:
    root = lay("all/cats/1.jpg", "all/cats/more/2.jpg", "all/dogs/3.jpg", "all/4.jpg", "train/rest/5.jpg")
    _link(root, "train/cat", "../all/cats")
    _link(root, "train/dog", "../all/dogs")
    _link(root, "train/rest/more", "../../all/cats/more")
    _link(root, "train/rest/4.jpg", "../../all/4.jpg")
    _link(root, "all/dogs/back", "..")
    assert _found(root) == {"cat": ["1.jpg", "2.jpg"], "dog": ["3.jpg"], "rest": ["4.jpg", "5.jpg"]}
    (tmp_path / "linked").symlink_to(root)
    assert _found(tmp_path / "linked") == _found(root)


@pytest.mark.timeout(30)  # a FIFO that is opened never ends
def test_what_is_no_regular_file_is_never_opened(lay: Lay, monkeypatch: pytest.MonkeyPatch) -> None:
    root = lay("train/a/1.jpg", "train/b/2.jpg")
    os.mkfifo(root / "train/a/fifo.jpg")
    _link(root, "train/b/linked.jpg", "../a/fifo.jpg")
    _link(root, "train/b/nothing.jpg", "nowhere")
    _link(root, "train/b/device.jpg", "/dev/zero")
    monkeypatch.chdir(root)  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("train/a/socket.jpg")
        assert _found(root) == {"a": ["1.jpg"], "b": ["2.jpg"]}
    assert sum(count for _, count in find(root, "train").skipped) == 5


def test_class_whose_name_is_no_utf_8_is_an_error(lay: Lay) -> None:
    root = lay("train/a/1.jpg", "train/b/2.jpg")
    os.rename(root / "train" / "b", os.fsencode(root / "train") + b"/caf\xe9")
    with pytest.raises(DataError, match=r"class folder in .*/train has the name 'caf\\udce9', which is not UTF-8"):
        find(root, "train")


def test_a_class_may_be_empty_where_nothing_is_trained(lay: Lay) -> None:
    root = lay("val/a/1.jpg", "val/c/2.jpg")
    (root / "val" / "b").mkdir()
    found = find(root, "val")
    assert (found.folders, found.empty, found.targets) == (("a", "b", "c"), ("b",), (0, 2))


def test_folder_without_any_photograph_says_what_is_there(lay: Lay) -> None:
    with pytest.raises(DataError, match=r"no photograph of a known format \(\.jpg, .*\), but 2 \.heic"):
        find(lay("train/a/1.heic", "train/b/2.heic"), "train")


def test_unlabelled_photographs_are_found_at_any_depth(lay: Lay) -> None:
    found = find_unlabelled(lay("1.jpg", "monday/2.jpg", "monday/noon/3.png", ".trash/4.jpg", "5.heic"))
    assert [path.name for path in found.paths] == ["1.jpg", "2.jpg", "3.png"]
    assert not found.is_labelled
    assert set(found.targets) == {-1}
    assert dict(found.skipped) == {"hidden": 1, ".heic": 1}
    assert not found.subset([0, 2]).is_labelled


@pytest.mark.parametrize("names", [["a/1.jpg", "b/2.jpg"], ["train/a/1.jpg", "val/b/2.jpg"]])
def test_labelled_photographs_are_not_taken_as_unlabelled(lay: Lay, names: list[str]) -> None:
    root = lay(*names)
    with pytest.raises(DataError, match="holds the model's classes: leave out --unlabelled"):
        find_unlabelled(root, ("a", "b"))
    assert len(find_unlabelled(root, ("cat", "dog"))) == 2


def test_nothing_unlabelled_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no photograph of a known format"):
        find_unlabelled(tmp_path)
    with pytest.raises(DataError, match="which is not a folder"):
        find_unlabelled(tmp_path / "nowhere")
