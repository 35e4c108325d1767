"""What classes are called, and which of them cannot be learnt."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from service.errors import DataError
from service.training.classes import check_trainable, labels
from service.training.data import find


def test_labels_come_from_a_json_file(tmp_path: Path) -> None:
    names = tmp_path / "names.json"
    names.write_text(json.dumps({"n02": "a bee", "n01": "an ant", "n03": "unused"}))
    assert labels(("n01", "n02"), names) == ("an ant", "a bee")
    assert labels(("n01", "n02"), None) == ("n01", "n02")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"n01": "an ant"}', "lack folder 'n02'"),
        ("{", "cannot be read"),
        ('["an ant"]', "cannot be read"),
        ('{"n01": "an ant", "n02": null}', "label None for folder 'n02'; it must be text that is not empty"),
        ('{"n01": "an ant", "n02": ""}', "label '' for folder 'n02'"),
        ('{"n01": "an ant", "n02": " "}', "label ' ' for folder 'n02'"),
        ('{"n01": "an ant", "n02": 2}', "label 2 for folder 'n02'"),
        ('{"n01": "an ant", "n02": ["an", "ant"]}', "for folder 'n02'; it must be text"),
        ('{"n01": "an ant", "n02": "an ant "}', "label 'an ant ' for folders 'n01' and 'n02'; each needs its own"),
        ('{"n01": "an ant", "n02": "\\ud800"}', r"has the name '\\ud800', which is not UTF-8"),
    ],
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


@pytest.fixture
def data(shapes: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shapes / "val", tmp_path / "train")).parent


def _check(data: Path) -> None:
    found = find(data, "train")
    check_trainable(data, found, found)


def test_classes_with_photographs_can_be_learnt(data: Path) -> None:
    _check(data)


def test_empty_class_is_named_with_what_is_there_instead(data: Path) -> None:
    (data / "train" / "pentagon").mkdir()
    (data / "train" / "pentagon" / "1.heic").touch()
    with pytest.raises(DataError, match=r"no photograph of class 'pentagon' .* in all classes: 1 \.heic"):
        _check(data)


def test_one_class_is_too_few_and_may_be_the_data_set(data: Path) -> None:
    (data / "train").rename(data / "shapes")
    with pytest.raises(DataError, match="shapes/; it needs at least 2: if the class folders"):
        _check(data)


@pytest.mark.parametrize("contents", [b"", b"no photograph", b"\xff\xd8\xff\xe0cut", b"II*\x00a TIFF named otherwise"])
def test_class_of_which_no_file_can_be_read_is_named(data: Path, contents: bytes) -> None:
    for path in (data / "train" / "square").iterdir():
        path.write_bytes(contents)
    with pytest.raises(DataError, match=r"none of the 6 photographs of class 'square' can be read, .*00\.jpg first"):
        _check(data)
    shutil.copy(data / "train" / "circle" / "00.jpg", data / "train" / "square" / "zz.jpg")
    _check(data)
